//! Vector instructions are inlined: without that, each is a function call, and nothing else shows it.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![allow(clippy::unwrap_used, reason = "without `nm` the test fails")]

use std::process::Command;

use cpu_kernels::Kernels;

/// Kernels that are generic over an instruction set become part of a function that may use it. A closure that stays a function
/// of its own may not, so that its instructions stay functions as well, with symbols of their own.
#[test]
fn no_vector_instruction_is_a_function() {
    // Links the kernels.
    assert!(Kernels::new().unwrap().isa().is_available());
    let program = std::env::current_exe().unwrap();
    let symbols = Command::new("nm").args(["--demangle", "--defined-only"]).arg(program).output().unwrap();
    assert!(symbols.status.success(), "{}", String::from_utf8_lossy(&symbols.stderr));
    let symbols = String::from_utf8_lossy(&symbols.stdout);
    assert!(symbols.contains("cpu_kernels::"), "the program has symbols");
    let functions: Vec<_> = symbols.lines().filter(|line| line.contains("core_arch::x86::")).collect();
    assert!(functions.is_empty(), "{functions:#?}");
}
