//! The program in a folder of its own.

use assert_cmd::Command;
use std::path::{Path, PathBuf};
use std::process::Output;
use tempfile::TempDir;

/// The smallest run on the embedded digits.
pub(crate) const TINY: &[&str] = &[
    "--num-channels",
    "32",
    "--channel-mult",
    "1",
    "--attention-resolutions",
    "",
    "--class-cond",
    "false",
    "--batch-size",
    "4",
    "--diffusion-steps",
    "10",
    "--noise-schedule",
    "cosine",
    "--grid-images",
    "0",
    "--log-interval",
    "1",
    "--set",
    "sample.timestep_respacing=",
    "--out",
    "run",
];

/// A folder to work in.
pub(crate) struct Place(TempDir);

impl Place {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    pub(crate) fn run(&self, args: &[&str]) -> Ran {
        self.run_with(&[], args)
    }

    /// A call with environment variables.
    pub(crate) fn run_with(&self, variables: &[(&str, &str)], args: &[&str]) -> Ran {
        let mut command = Command::cargo_bin("ddpm-ip").unwrap();
        // What is kept between calls is kept here.
        let command = command.current_dir(self.0.path()).env("DDPM_IP_CACHE", "cache");
        Ran(command.envs(variables.iter().copied()).args(args).output().unwrap())
    }

    /// `train` on the tiny run with more flags.
    pub(crate) fn train(&self, more: &[&str]) -> Ran {
        self.run(&[&["train"], TINY, more].concat())
    }

    /// Whether nothing was written.
    pub(crate) fn is_empty(&self) -> bool {
        std::fs::read_dir(self.0.path()).unwrap().next().is_none()
    }
}

/// A call that has ended.
pub(crate) struct Ran(Output);

impl Ran {
    pub(crate) fn out(&self) -> String {
        String::from_utf8_lossy(&self.0.stdout).into_owned()
    }

    pub(crate) fn err(&self) -> String {
        String::from_utf8_lossy(&self.0.stderr).into_owned()
    }

    #[track_caller]
    pub(crate) fn exits(self, code: i32) -> Self {
        assert_eq!(self.0.status.code(), Some(code), "{}{}", self.out(), self.err());
        self
    }

    /// One message, which says all of `parts`.
    #[track_caller]
    pub(crate) fn complains(self, code: i32, parts: &[&str]) {
        let this = self.exits(code);
        let message = this.err();
        for part in parts {
            assert!(message.contains(part), "{message:?} does not say {part:?}");
        }
        assert!(!message.contains("panicked"), "{message}");
    }
}

/// The names of what is in a folder, sorted.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}
