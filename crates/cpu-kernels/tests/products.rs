//! Products against sums in double precision: every storage, element type and instruction set, at odd shapes.
#![allow(clippy::unwrap_used, reason = "a failed kernel fails the test")]

mod common;

use common::{Kind, Matrix, check, kernels, kinds, schemes, vector};
use cpu_kernels::{Isa, Kernels};
use proptest::prelude::*;

/// Row counts at which kernels change their ways, and those between.
fn rows() -> impl Strategy<Value = usize> {
    prop_oneof![Just(1_usize), 1..10_usize, 10..70_usize]
}

/// Inputs that suit a storage: whole groups for quantised ones.
fn shape() -> impl Strategy<Value = (Matrix, u64)> {
    (schemes(), 1..100_usize, 1..9_usize, 1..300_usize, any::<u64>()).prop_map(
        |(storage, outputs, groups, odd, seed)| (Matrix::new(storage, 1, outputs, groups, odd, seed), seed),
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn multiply((w, seed) in shape(), rows in rows(), x_kind in kinds(), out_kind in kinds(),
                with_bias in any::<bool>(), kernels in kernels()) {
        let x = vector(x_kind, rows * w.inputs, seed ^ 1);
        let bias = with_bias.then(|| vector(x_kind, w.outputs, seed ^ 2));
        let mut out = vector(out_kind, rows * w.outputs, 0);
        kernels.matmul(x.floats(), &w.matrices(), bias.as_ref().map(|bias| bias.floats()), out.floats_mut()).unwrap();
        for row in 0..rows {
            for output in 0..w.outputs {
                let terms = (0..w.inputs).map(|i| x.get(row * w.inputs + i) * w.get(0, output, i));
                let bias = bias.as_ref().map(|bias| bias.get(output));
                check(out.get(row * w.outputs + output), terms.chain(bias), out_kind)?;
            }
        }
    }

    /// Storages that are multiplied as pairs of bf16, where there are instructions for that.
    #[test]
    fn multiply_halves(
        storage in prop_oneof![Just(None), schemes().prop_filter("4 or 8 bits", |s| s.is_none_or(|s| matches!(s.bits, 4 | 8)))],
        outputs in 1..200_usize, groups in 1..9_usize, odd in 1..400_usize, rows in rows(), seed in any::<u64>(),
        out_kind in kinds(), kernels in kernels(),
    ) {
        let w = Matrix::new(storage, 1, outputs, groups, odd, seed);
        let x = vector(Kind::Bf16, rows * w.inputs, seed ^ 1);
        let mut out = vector(out_kind, rows * outputs, 0);
        kernels.matmul(x.floats(), &w.matrices(), None, out.floats_mut()).unwrap();
        for row in 0..rows {
            for output in 0..outputs {
                let terms = (0..w.inputs).map(|i| x.get(row * w.inputs + i) * w.get(0, output, i));
                check(out.get(row * outputs + output), terms, out_kind)?;
            }
        }
    }

    #[test]
    fn matmul_grad((w, seed) in shape(), rows in rows(), kind in kinds(), kernels in kernels()) {
        let g = vector(kind, rows * w.outputs, seed ^ 1);
        let mut out = vector(kind, rows * w.inputs, 0);
        kernels.matmul_grad(g.floats(), &w.matrices(), out.floats_mut()).unwrap();
        for row in 0..rows {
            for input in 0..w.inputs {
                let terms = (0..w.outputs).map(|o| g.get(row * w.outputs + o) * w.get(0, o, input));
                check(out.get(row * w.inputs + input), terms, kind)?;
            }
        }
    }

    #[test]
    fn gather_matmul(storage in schemes(), count in 1..6_usize, outputs in 1..40_usize, groups in 1..5_usize,
                       odd in 1..150_usize, rows in 1..20_usize, k in 1..4_usize, [sorted, biased] in any::<[bool; 2]>(),
                       seed in any::<u64>(), kind in kinds(), kernels in kernels()) {
        let w = Matrix::new(storage, count, outputs, groups, odd, seed);
        let x = vector(kind, rows * w.inputs, seed ^ 1);
        let mut expert_ids: Vec<u32> =
            (0..rows * k).map(|i| (seed.rotate_left(i as u32 * 7) % count as u64) as u32).collect();
        if sorted {
            expert_ids.sort_unstable();
        }
        let mut out = vector(kind, expert_ids.len() * outputs, 0);
        let bias = biased.then(|| vector(kind, count * outputs, seed ^ 2));
        let biases = bias.as_ref().map(|bias| bias.floats());
        kernels.gather_matmul(x.floats(), &w.matrices(), biases, &expert_ids, out.floats_mut()).unwrap();
        for (p, expert) in expert_ids.iter().enumerate() {
            for output in 0..outputs {
                let terms = (0..w.inputs).map(|i| x.get(p / k * w.inputs + i) * w.get(*expert as usize, output, i));
                let bias = bias.as_ref().map(|bias| bias.get(*expert as usize * outputs + output));
                check(out.get(p * outputs + output), terms.chain(bias), kind)?;
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Where a row ends within a block, scales behind it are those of the next row.
    #[test]
    fn infinite_scales_of_a_row_stay_its_own(scheme in schemes(), groups in 1..6_usize, rows in rows(), kind in kinds(),
                                             seed in any::<u64>(), kernels in kernels()) {
        prop_assume!(scheme.is_some());
        let mut w = Matrix::new(scheme, 1, 4, groups, 0, seed);
        w.spoil(1);
        w.spoil(3);
        let x = vector(kind, rows * w.inputs, seed ^ 1);
        let mut out = vector(Kind::F32, rows * 4, 0);
        kernels.matmul(x.floats(), &w.matrices(), None, out.floats_mut()).unwrap();
        for (row, output) in (0..rows).flat_map(|row| [(row, 0), (row, 2)]) {
            let terms = (0..w.inputs).map(|i| x.get(row * w.inputs + i) * w.get(0, output, i));
            check(out.get(row * 4 + output), terms, Kind::F32)?;
        }
    }
}

#[test]
fn operands_that_do_not_fit_are_refused() {
    let kernels = Kernels::new().unwrap();
    let w = Matrix::new(None, 1, 4, 1, 8, 7);
    let x = vector(Kind::F32, 9, 1);
    let mut out = vector(Kind::F32, 4, 0);
    let refused = kernels.matmul(x.floats(), &w.matrices(), None, out.floats_mut());
    assert_eq!(refused.unwrap_err().to_string(), "x has 9 elements, expected 8");
    let x = vector(Kind::F32, 8, 1);
    let refused = kernels.gather_matmul(x.floats(), &w.matrices(), None, &[1], out.floats_mut());
    assert_eq!(refused.unwrap_err().to_string(), "an expert id is 1, expected less than the 1 matrices");
    let mut cut = w.matrices();
    cut.inputs = 7;
    let refused = kernels.matmul(x.floats(), &cut, None, out.floats_mut());
    assert_eq!(refused.unwrap_err().to_string(), "weights has 32 elements, expected 28");
    let mut endless = w.matrices();
    (endless.inputs, endless.outputs) = (usize::MAX / 2, 4);
    assert!(kernels.matmul(x.floats(), &endless, None, out.floats_mut()).is_err());
}

#[test]
fn nothing_is_computed_of_nothing() {
    let kernels = Kernels::new().unwrap();
    let w = Matrix::new(None, 1, 4, 1, 8, 7);
    let (empty, mut out) = (vector(Kind::F32, 0, 0), vector(Kind::F32, 0, 0));
    kernels.matmul(empty.floats(), &w.matrices(), None, out.floats_mut()).unwrap();
    kernels.gather_matmul(empty.floats(), &w.matrices(), None, &[], out.floats_mut()).unwrap();
    kernels.matmul_grad(empty.floats(), &w.matrices(), out.floats_mut()).unwrap();
}

#[test]
fn products_of_empty_rows_are_the_bias() {
    for kernels in Isa::ALL.iter().filter_map(|isa| Kernels::with_isa(*isa).unwrap()) {
        for rows in [1, 20] {
            let w = Matrix::new(None, 1, 3, 1, 0, 7);
            let (x, bias) = (vector(Kind::Bf16, 0, 0), vector(Kind::F32, 3, 1));
            let mut out = vector(Kind::F32, rows * 3, 2);
            kernels.matmul(x.floats(), &w.matrices(), Some(bias.floats()), out.floats_mut()).unwrap();
            assert!((0..rows * 3).all(|i| out.get(i) == bias.get(i % 3)));
        }
    }
}
