//! `ddpm-ip watch`: runs on a live page.

use crate::output::{complain, print};
use crate::watch::{Site, serve};
use anyhow::Context;
use clap::{Arg, ArgMatches, Command, value_parser};
use ddpm_ip::Outcome;
use ddpm_ip::config::ConfigError;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;

/// Ports that are tried after the one that was asked for.
const FURTHER: u16 = 20;

pub(super) fn command() -> Command {
    Command::new("watch")
        .about("Serve a live page about runs, while they train or after")
        .long_about(
            "Serve a live page about runs, while they train or after: what `report` shows, kept up to date. It reads the runs' \
             files and changes nothing, so it can be started and stopped at any time. The page is for this machine; from \
             elsewhere, `ssh -L 8650:localhost:8650 MACHINE` brings it to http://localhost:8650 there.",
        )
        .arg(
            Arg::new("runs")
                .value_name("RUNS")
                .help("run directories, and folders with runs in them [default: runs]")
                .num_args(1..)
                .value_parser(value_parser!(PathBuf)),
        )
        .arg(
            Arg::new("port")
                .long("port")
                .value_name("PORT")
                .help("port; if it is in use, the next that is free")
                .default_value("8650")
                .value_parser(value_parser!(u16)),
        )
        .arg(
            Arg::new("bind")
                .long("bind")
                .value_name("ADDRESS")
                .help("address to listen on; with one that is not a loopback address, everybody who reaches it sees the runs")
                .default_value("127.0.0.1")
                .value_parser(|text: &str| match text {
                    "localhost" => Ok(IpAddr::from(Ipv4Addr::LOCALHOST)),
                    _ => text.parse().map_err(|_| "give an IP address, such as 127.0.0.1 or 0.0.0.0"),
                }),
        )
}

pub(super) fn run(matches: &ArgMatches) -> anyhow::Result<Outcome> {
    let given = matches.get_many::<PathBuf>("runs").into_iter().flatten().cloned().collect::<Vec<_>>();
    let places = if given.is_empty() { vec![PathBuf::from("runs")] } else { given };
    if let Some(missing) = places.iter().find(|place| !place.is_dir()) {
        let message = format!("{} is no folder: name run directories, or a folder with runs in it", missing.display());
        return Err(ConfigError(message).into());
    }
    let (Some(&bind), Some(&port)) = (matches.get_one::<IpAddr>("bind"), matches.get_one::<u16>("port")) else {
        unreachable!("both have defaults")
    };
    let stop = crate::interrupt::flag()?;
    let listener = listen(bind, port)?;
    let address = listener.local_addr().context("cannot tell the address")?;
    if address.port() != port && port != 0 {
        complain(&format!("port {port} is in use: this is port {}", address.port()));
    }
    if !bind.is_loopback() {
        complain("everybody who reaches this address sees the runs");
    }
    let site = Site::new(places, bind.is_loopback());
    // A name that browsers on this machine reach whatever is bound.
    let host = if bind.is_unspecified() { IpAddr::from(Ipv4Addr::LOCALHOST) } else { bind };
    print(&format!("{} runs at http://{} (Ctrl-C ends)", site.count(), SocketAddr::new(host, address.port())))?;
    serve(listener, site, &stop).with_context(|| format!("cannot serve at {address}"))?;
    Ok(Outcome::Finished)
}

/// Listens on the port, or the next one that is free.
fn listen(bind: IpAddr, port: u16) -> anyhow::Result<TcpListener> {
    for at in port..=port.saturating_add(FURTHER) {
        match TcpListener::bind((bind, at)) {
            Err(e) if e.kind() == ErrorKind::AddrInUse => {}
            bound => {
                return bound.with_context(|| {
                    format!("cannot listen on {}: try another --bind or --port", SocketAddr::new(bind, at))
                });
            }
        }
    }
    let last = port.saturating_add(FURTHER);
    Err(ConfigError(format!("the ports {port} to {last} of {bind} are in use: name another --port")).into())
}
