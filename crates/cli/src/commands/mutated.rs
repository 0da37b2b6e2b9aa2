//! Configurations and command lines that nobody meant: whatever they say, there is an answer and no panic.
//! `DDPM_IP_EXECUTIONS=1000000 cargo test -p ddpm-ip-cli --lib mutated -- --nocapture` tries a million of each, and
//! `DDPM_IP_SEED` others.

use super::{command, kebab_case, sample, train, unknown_flag};
use ddpm_ip::config::{Config, KEYS, Layers, PRESETS};
use ddpm_math::{Domain, Stream};
use std::ffi::OsString;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

/// Values at which parsers and checks go wrong.
const VALUES: [&str; 44] = [
    "0",
    "1",
    "2",
    "-1",
    "8",
    "32",
    "1000",
    "4294967295",
    "4294967296",
    "9223372036854775807",
    "-9223372036854775808",
    "99999999999999999999",
    "0.5",
    "-0.0",
    "1e-320",
    "1e308",
    "nan",
    "-inf",
    "inf",
    "true",
    "false",
    "''",
    "'auto'",
    "'ddim25'",
    "'25,25,25'",
    "'0'",
    "'99999999999999999999'",
    "'cosine'",
    "'a\\u0000b'",
    "'é名'",
    "[]",
    "[1, 2, 2]",
    "[0.9, nan]",
    "[0]",
    "[1e300, -1]",
    "[4294967296, 4294967296]",
    "['a', 'b']",
    "[[1]]",
    "{}",
    "{ a = 1 }",
    "1979-05-27",
    "0x10",
    "1_000",
    "",
];

/// Calls something as often as the environment says, each time with another stream of random numbers.
fn repeat(what: &str, call: impl Fn(&mut Stream) -> bool) {
    let number = |name: &str, usual: u64| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(usual);
    let (seed, count) = (number("DDPM_IP_SEED", 0), number("DDPM_IP_EXECUTIONS", 2000));
    let (begun, mut good) = (Instant::now(), 0);
    for execution in 0..count {
        let input = AssertUnwindSafe(|| call(&mut Stream::new(seed, Domain::Order, execution, 0)));
        let answer = catch_unwind(input).ok();
        good += u64::from(answer.unwrap_or_else(|| panic!("{what}: execution {execution} of seed {seed} panicked")));
    }
    println!("{what}: {count} executions of seed {seed} in {:.0?}, {good} of them accepted", begun.elapsed());
}

fn pick<'a, T>(stream: &mut Stream, list: &'a [T]) -> &'a T {
    &list[stream.below(list.len() as u64) as usize]
}

/// Some changes of bytes, whatever they mean.
fn change(stream: &mut Stream, bytes: &mut Vec<u8>) {
    for _ in 0..=stream.below(3) {
        let at = stream.below(bytes.len() as u64 + 1) as usize;
        match stream.below(4) {
            0 if at < bytes.len() => bytes[at] ^= 1 << stream.below(8),
            1 => bytes.truncate(at),
            2 => bytes.insert(at, *pick(stream, b"\"'[]{}=.#\n\\\0\xff,-e_")),
            _ => drop(bytes.drain(at..(at + stream.below(9) as usize).min(bytes.len()))),
        }
    }
}

#[test]
fn mutated_configurations_are_answered() {
    let presets = PRESETS.iter().map(|preset| preset.config().to_toml());
    let brief = PRESETS.iter().map(|preset| preset.table().to_string());
    let seeds: Vec<String> = presets.chain(brief).collect();
    repeat("configurations", |stream| {
        let mut lines: Vec<String> = pick(stream, &seeds).lines().map(String::from).collect();
        for _ in 0..=stream.below(4) {
            let at = stream.below(lines.len() as u64) as usize;
            match stream.below(8) {
                0 => drop(lines.remove(at)),
                1 => lines.insert(at, lines[at].clone()),
                2 => {
                    let key = pick(stream, KEYS);
                    lines.push(format!("[{}]\n{} = {}", key.section, key.name, pick(stream, &VALUES)));
                }
                _ => {
                    if let Some((name, _)) = lines[at].split_once('=') {
                        lines[at] = format!("{name}= {}", pick(stream, &VALUES));
                    }
                }
            }
            if lines.is_empty() {
                lines.push(String::new());
            }
        }
        let mut text = lines.join("\n").into_bytes();
        if stream.below(3) == 0 {
            change(stream, &mut text);
        }
        let text = String::from_utf8_lossy(&text).into_owned();
        // What a checkpoint carries, and what a user lays on defaults.
        let whole = Config::from_toml(&text).is_ok_and(|config| config.validate().is_ok());
        let laid = || {
            let mut layers = Layers::default();
            layers.add(text.parse().ok()?).ok()?;
            let config = layers.resolve().ok()?;
            config.validate().ok()?;
            let written = Config::from_toml(&config.to_toml()).expect("what is written is read");
            assert_eq!(written.to_toml(), config.to_toml());
            drop(config.check_timesteps());
            Some(())
        };
        let laid = laid().is_some();
        whole || laid
    });
}

#[test]
fn mutated_command_lines_are_answered() {
    let program = {
        let mut program = command();
        program.build();
        program
    };
    let commands: Vec<_> = program.get_subcommands().collect();
    repeat("command lines", |stream| {
        let command = *pick(stream, &commands);
        let flags: Vec<_> = command.get_arguments().filter_map(|flag| flag.get_long()).collect();
        let mut words: Vec<OsString> = vec!["ddpm-ip".into(), command.get_name().into()];
        for _ in 0..=stream.below(3) {
            let flag = if flags.is_empty() { "help" } else { pick(stream, &flags) };
            let value = pick(stream, &VALUES).trim_matches(['\'', '[', ']']);
            let key = pick(stream, KEYS);
            match stream.below(12) {
                0 => words.push(value.into()),
                1 => words.push(format!("--{flag}={value}").into()),
                2 => words.push(format!("--{}", flag.replace('-', "_")).into()),
                3 => words.extend(["--set".into(), format!("{}={value}", key.path()).into()]),
                4 => words.extend([format!("--{}", key.flag()).into(), value.into()]),
                5 => {
                    let mut text = flag.as_bytes().to_vec();
                    change(stream, &mut text);
                    words.push(format!("--{}", String::from_utf8_lossy(&text)).into());
                }
                _ => words.extend([format!("--{flag}").into(), value.into()]),
            }
        }
        let words: Vec<OsString> = words.into_iter().map(kebab_case).collect();
        // Files named by chance are not read: what is wanted of a configuration is tried above.
        let is_free = !words.iter().any(|word| word.to_string_lossy().starts_with("--config"));
        let answer = program.clone().try_get_matches_from_mut(&words);
        match &answer {
            Ok(matches) => {
                let (name, matches) = matches.subcommand().expect("one is required");
                let kinds = train::KINDS.iter().map(|kind| (kind.name, kind.settings));
                let settings = kinds.chain(sample::KINDS.iter().map(|kind| (kind.name, sample::SETTINGS)));
                for (_, settings) in settings.filter(|(of, _)| *of == name && is_free) {
                    drop(settings.resolve(Layers::default(), matches).map(|(config, _)| config.validate()));
                }
                true
            }
            Err(error) => {
                drop(unknown_flag(&program, &words, error));
                drop(error.to_string());
                false
            }
        }
    });
}
