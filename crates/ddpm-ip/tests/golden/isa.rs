//! All golden cases on every instruction set of the machine.

use std::process::Command;

#[test]
fn every_instruction_set_passes() {
    const VARIABLE: &str = "DDPM_IP_ISA";
    // In a process that was given one, that is the one to test.
    if std::env::var_os(VARIABLE).is_some() {
        assert!(ddpm_ip::instruction_set().is_ok());
        return;
    }
    let tests = std::env::current_exe().unwrap();
    for isa in ddpm_ip::instruction_sets() {
        let run = Command::new(&tests).env(VARIABLE, isa).output().unwrap();
        let said = String::from_utf8_lossy(&run.stdout);
        assert!(run.status.success(), "with {VARIABLE}={isa}:\n{said}");
        assert!(!said.contains(" 0 passed"), "{said}");
    }
}
