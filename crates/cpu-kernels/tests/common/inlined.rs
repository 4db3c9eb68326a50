//! Vector instructions are inlined: without that, each is a function call, and only the speed shows it.

use std::process::Command;

/// Kernels that are generic over an instruction set become part of a function that may use it. A closure that stays a function
/// of its own may not, so that its instructions stay functions as well, with symbols of their own.
#[test]
fn no_vector_instruction_is_a_function() {
    let program = std::env::current_exe().unwrap();
    let symbols = Command::new("nm").args(["--demangle", "--defined-only"]).arg(program).output().unwrap();
    assert!(symbols.status.success(), "{}", String::from_utf8_lossy(&symbols.stderr));
    let symbols = String::from_utf8_lossy(&symbols.stdout);
    assert!(symbols.contains("cpu_kernels::simd::avx512::run"), "the kernels are in the program");
    let functions: Vec<_> = symbols
        .lines()
        .filter(|line| {
            line.contains("core_arch::x86::") && (line.contains("_mm256") || line.contains("_mm512"))
        })
        .collect();
    assert!(functions.is_empty(), "{functions:#?}");
}
