//! `ddpm-ip check`: whether a device computes what the processor computes.

use crate::args;
use crate::output::{complain, print};
use anyhow::bail;
use clap::{ArgMatches, Command};
use ddpm_ip::check::{Finding, check};
use ddpm_ip::{Device, Event, Outcome};

pub(crate) fn command() -> Command {
    Command::new("check")
        .about("Compare a GPU's results with the CPU's: operations, networks, training and sampling")
        .long_about(
            "Compare the results of --device with those of the CPU: every operation on odd shapes, networks of each family with \
             their gradients, a few training steps and sampling chains, in f32, bf16 and f16. Prints the error of each. The \
             exit code is 1 if any error is larger than rounding explains.",
        )
        .args(args::device_args())
        .arg(args::switch("json", "print the report as JSON"))
        .args_override_self(true)
}

pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<Outcome> {
    let device = args::device(matches)?;
    if device == Device::Cpu {
        complain("no GPU is used: the CPU is compared with itself");
    }
    let json = matches.get_flag("json");
    let mut emit = |event| {
        if let Event::Checked(finding) = event
            && !json
        {
            let _ = print(&line(&finding));
        }
    };
    let findings = check(device, &mut emit)?;
    let bad = findings.iter().filter(|finding| !finding.is_good()).count();
    if json {
        print(&serde_json::to_string_pretty(&findings)?)?;
    }
    if bad > 0 {
        bail!("{bad} of {} comparisons are out of tolerance", findings.len());
    }
    if !json {
        print(&format!("all {} comparisons are within tolerance", findings.len()))?;
    }
    Ok(Outcome::Finished)
}

fn line(finding: &Finding) -> String {
    let mark = if finding.is_good() { "ok " } else { "BAD" };
    let Finding { what, precision, error, tolerance } = finding;
    format!("{mark} {:<4} {error:.1e} (at most {tolerance:.0e})  {what}", precision.name())
}
