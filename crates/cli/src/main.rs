//! The ddpm-ip program.

use std::process::ExitCode;

#[global_allocator]
static MEMORY: ddpm_ip_cli::memory::Speaking = ddpm_ip_cli::memory::Speaking;

fn main() -> ExitCode {
    ddpm_ip_cli::main(std::env::args_os()).into()
}
