//! All of these tests on every instruction set of the machine.

use ddpm_kernels::{ISA_VARIABLE, Isa};
use std::process::Command;

#[test]
fn every_instruction_set_passes() {
    // In a process that was given one, that is the one to test.
    if std::env::var_os(ISA_VARIABLE).is_some() {
        assert!(Isa::selected().is_ok());
        return;
    }
    let tests = std::env::current_exe().unwrap();
    for isa in Isa::available() {
        let run = Command::new(&tests).env(ISA_VARIABLE, isa.name()).output().unwrap();
        let said = String::from_utf8_lossy(&run.stdout);
        assert!(run.status.success(), "with {ISA_VARIABLE}={}:\n{said}", isa.name());
        assert!(!said.contains(" 0 passed"), "{said}");
    }
}
