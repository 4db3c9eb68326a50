//! mlx-rs, as published, over this crate; and the C functions that its safe API has no name for.

use std::ffi::CStr;
use std::ptr;

use half::{bf16, f16};
use mlx_rs::{Array, Dtype, Stream};
use mlx_sys::{mlx_array, mlx_optional_dtype, mlx_optional_int};

const UNSET: mlx_optional_int = mlx_optional_int { value: 0, has_value: false };

#[test]
fn the_library_is_of_the_pinned_version() {
    // SAFETY: the string is new, and freed once, after its last use.
    let version = unsafe {
        let mut version = mlx_sys::mlx_string_new();
        assert_eq!(mlx_sys::mlx_version(&mut version), 0);
        let text = CStr::from_ptr(mlx_sys::mlx_string_data(version)).to_str().unwrap().to_owned();
        mlx_sys::mlx_string_free(version);
        text
    };
    assert_eq!(version, "0.32.2");
}

#[test]
fn arrays_are_added() {
    let sum = Array::from_slice(&[1.0_f32, 2.0], &[2]).add(Array::from_slice(&[3.0_f32, 4.0], &[2])).unwrap();
    assert_eq!(sum.as_slice::<f32>(), [4.0, 6.0]);
}

#[test]
fn half_precision_numbers_keep_their_bits() {
    for bits in [0x0000_u16, 0x0001, 0x3e00, 0x7c00, 0xbe00, 0xfbff] {
        let (narrow, wide) = (f16::from_bits(bits), bf16::from_bits(bits));
        let narrow_array = Array::from_slice(&[narrow; 3], &[3]);
        let wide_array = Array::from_slice(&[wide; 3], &[3]);
        assert_eq!(narrow_array.as_slice::<f16>(), [narrow; 3]);
        assert_eq!(wide_array.as_slice::<bf16>(), [wide; 3]);
        assert_eq!(narrow_array.max(false).unwrap().item_exact::<f16>(), narrow);
        assert_eq!(wide_array.max(false).unwrap().item_exact::<bf16>(), wide);
    }
}

#[test]
fn the_number_in_half_precision_is_the_number() {
    let wide = Array::from_slice(&[1.5_f32, -2.0], &[2]);
    assert_eq!(
        wide.as_dtype(Dtype::Float16).unwrap().as_slice::<f16>(),
        [f16::from_f32(1.5), f16::from_f32(-2.0)]
    );
    assert_eq!(
        wide.as_dtype(Dtype::Bfloat16).unwrap().as_slice::<bf16>(),
        [bf16::from_f32(1.5), bf16::from_f32(-2.0)]
    );
}

#[test]
fn an_error_of_mlx_is_an_error_in_rust() {
    let wrong = Array::from_slice(&[1.0_f32, 2.0], &[2]).add(Array::from_slice(&[1.0_f32, 2.0, 3.0], &[3]));
    let message = wrong.unwrap_err().to_string();
    assert!(message.contains("broadcast"), "{message}");
}

#[test]
fn every_mode_of_quantisation_comes_back_close() {
    // Within one step: sixteen levels over [-1, 1]; half the gap below the largest number of fp4 or fp8, under a scale that
    // is a power of two.
    let weights: Vec<f32> = (0..128).map(|index| (index as f32 / 10.0).sin()).collect();
    let weights = Array::from_slice(&weights, &[2, 64]);
    let stream = Stream::thread_local_or_default();
    for (mode, parts, tolerance) in
        [(c"affine", 3, 2.0 / 15.0), (c"mxfp4", 2, 0.3), (c"mxfp8", 2, 0.1), (c"nvfp4", 2, 0.3)]
    {
        let quantised = quantised(&weights, mode, &stream);
        assert_eq!(quantised.len(), parts, "{mode:?}");
        let restored = dequantised(&quantised, mode, &stream);
        assert_eq!(restored.shape(), weights.shape());
        let worst =
            restored.subtract(&weights).unwrap().abs().unwrap().max(false).unwrap().item_exact::<f32>();
        assert!(worst > 0.0 && worst < tolerance, "{mode:?}: {worst}");
    }
}

#[test]
fn random_numbers_need_no_seed() {
    let drawn = mlx_rs::random::uniform::<_, f32>(0.0, 1.0, &[64], None).unwrap();
    let drawn = drawn.as_slice::<f32>();
    assert!(drawn.iter().all(|number| (0.0..1.0).contains(number)));
    assert!(drawn.iter().any(|number| *number != drawn[0]));
}

/// The program finds another MLX than the one it was linked with, where the system's variable says so.
#[cfg(target_os = "linux")]
#[test]
fn ld_library_path_goes_first() {
    let loaded = |name: &str| {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let line = maps.lines().find(|line| line.ends_with(name)).unwrap();
        std::path::PathBuf::from(&line[line.find('/').unwrap()..])
    };
    if std::env::var_os("LD_LIBRARY_PATH_TEST").is_some() {
        println!("mlx at {}", loaded("/libmlx.so").display());
        return;
    }
    // The layout of a wheel: MLX names the libraries beside it relative to itself.
    let original = loaded("/libmlx.so");
    let other = tempfile::tempdir().unwrap();
    let wheel = original.ancestors().nth(3).unwrap();
    for folder in std::fs::read_dir(wheel).unwrap().map(|entry| entry.unwrap().path()) {
        if folder.extension().is_some_and(|extension| extension == "libs") {
            std::os::unix::fs::symlink(&folder, other.path().join(folder.file_name().unwrap())).unwrap();
        }
    }
    let lib = other.path().join("mlx/lib");
    std::fs::create_dir_all(&lib).unwrap();
    std::fs::copy(&original, lib.join("libmlx.so")).unwrap();
    let run = |variables: &[(&str, &std::path::Path)]| {
        let mut program = std::process::Command::new(std::env::current_exe().unwrap());
        program.args(["--exact", "ld_library_path_goes_first", "--nocapture"]).env_clear();
        let output =
            program.env("LD_LIBRARY_PATH_TEST", "1").envs(variables.iter().copied()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let without = run(&[]);
    assert!(without.contains(&format!("mlx at {}", original.display())), "{without}");
    let with = run(&[("LD_LIBRARY_PATH", &lib)]);
    assert!(with.contains(&format!("mlx at {}", lib.join("libmlx.so").display())), "{with}");
}

/// The packed weights, their scales and, in the mode that has them, their biases.
fn quantised(weights: &Array, mode: &CStr, stream: &Stream) -> Vec<Array> {
    // SAFETY: the handles are live; those that are made here are freed once or given to an `Array`, which frees them.
    unsafe {
        let mut parts = mlx_sys::mlx_vector_array_new();
        let status = mlx_sys::mlx_quantize(
            &mut parts,
            weights.as_ptr(),
            UNSET,
            UNSET,
            mode.as_ptr(),
            ABSENT,
            stream.as_ptr(),
        );
        assert_eq!(status, 0, "{mode:?}");
        let arrays = (0..mlx_sys::mlx_vector_array_size(parts))
            .map(|index| {
                let mut part = mlx_sys::mlx_array_new();
                assert_eq!(mlx_sys::mlx_vector_array_get(&mut part, parts, index), 0);
                Array::from_ptr(part)
            })
            .collect();
        mlx_sys::mlx_vector_array_free(parts);
        arrays
    }
}

/// The weights in single precision.
fn dequantised(parts: &[Array], mode: &CStr, stream: &Stream) -> Array {
    let biases = parts.get(2).map_or(ABSENT, Array::as_ptr);
    let dtype = mlx_optional_dtype { value: mlx_sys::mlx_dtype__MLX_FLOAT32, has_value: true };
    // SAFETY: the handles are live; the result's is given to an `Array`, which frees it.
    unsafe {
        let mut whole = mlx_sys::mlx_array_new();
        let (packed, scales) = (parts[0].as_ptr(), parts[1].as_ptr());
        let status = mlx_sys::mlx_dequantize(
            &mut whole,
            packed,
            scales,
            biases,
            UNSET,
            UNSET,
            mode.as_ptr(),
            ABSENT,
            dtype,
            stream.as_ptr(),
        );
        assert_eq!(status, 0, "{mode:?}");
        Array::from_ptr(whole)
    }
}

const ABSENT: mlx_array = mlx_array { ctx: ptr::null_mut() };
