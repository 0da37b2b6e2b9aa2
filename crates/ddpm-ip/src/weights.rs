//! Files of weights from the network: fetched once, and checked by the hash in their name.
//!
//! PyTorch's hub puts the first eight or more digits of a file's SHA-256 at the end of its name
//! (`resnet18-5c106cde.pth`). Nothing is fetched without them, and only a file that fits them gets its name.

use crate::Error;
use crate::file::{create_folder, sync_folder};
use sha2::{Digest, Sha256};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use ureq::Agent;
use ureq::http::{StatusCode, Uri};
use ureq::tls::{RootCerts, TlsConfig};

/// No longer file is fetched.
pub const MAX_BYTES: u64 = 1 << 30;

/// A server that is silent for so long is given up.
const PATIENCE: Duration = Duration::from_secs(30);

/// A file of weights on the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// Its name, with the beginning of its SHA-256.
    pub name: &'static str,
    /// Where it is.
    pub url: &'static str,
    /// Its length.
    pub bytes: u64,
}

/// The Inception network that published FIDs are computed with, as torch-fidelity converted it from TensorFlow.
pub const INCEPTION: Source = Source {
    name: "weights-inception-2015-12-05-6726825d.pth",
    url: "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    bytes: 95_628_359,
};

/// How fetching a file ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fetched {
    /// The file is there now.
    Finished,
    /// It was there already, and is right; nothing was asked of the network.
    AlreadyThere,
    /// It was asked to stop, and kept what had arrived; the same call goes on from there.
    Interrupted,
}

/// Fetches a file to `to`, whose name ends in the beginning of the file's SHA-256. What arrives is kept in `to` with
/// `.part` added, from where a later call goes on, and gets its name when all of it is there and fits the hash.
///
/// `progress` hears how many bytes are there, and of how many where the server says so. Proxies are taken from the
/// environment (`https_proxy`, `no_proxy`, ...) and trusted certificates from the system.
///
/// # Errors
/// A server that cannot be reached or does not give the file, one that is not asked by https (this machine itself may
/// be), a connection that breaks, a file of more than [`MAX_BYTES`] or one that does not fit the hash, a name without
/// hash, a wrong file at `to`, another call that fetches the same file, and what the system says about files.
pub fn fetch(
    url: &str,
    to: &Path,
    progress: &mut dyn FnMut(u64, Option<u64>),
    stop: &AtomicBool,
) -> Result<Fetched, Error> {
    Download { url, to, max_bytes: MAX_BYTES }.run(progress, stop)
}

/// Computes a file's SHA-256, and compares it with the one that its name promises, if it does.
///
/// # Errors
/// A file that does not fit its name, or cannot be read.
pub fn check_hash(path: &Path) -> Result<String, Error> {
    let hash = File::open(path).and_then(sha256).map_err(Error::io("read", path))?;
    match hash_in_name(path) {
        Some(promised) if !hash.starts_with(promised) => {
            let message = format!(
                "its SHA-256 begins with {}, and its name promises {promised}: it is damaged or another file. Delete \
                 it and download it again",
                &hash[..promised.len()]
            );
            Err(Error::file(path, message))
        }
        _ => Ok(hash),
    }
}

/// The SHA-256 of some bytes.
pub(crate) fn hash(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// The first eight digits of the SHA-256 of some bytes.
pub(crate) fn short_hash(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes)[..4])
}

/// Hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().concat()
}

/// The beginning of a SHA-256 in a file's name: eight or more digits between the last dash and the next dot.
fn hash_in_name(path: &Path) -> Option<&str> {
    let (_, end) = path.file_name()?.to_str()?.rsplit_once('-')?;
    let digits = end.split('.').next()?;
    let is_hash = (8..=64).contains(&digits.len()) && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    is_hash.then_some(digits)
}

/// In hexadecimal digits.
fn sha256(mut reader: impl Read) -> io::Result<String> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(hex(&hasher.finalize())),
            Ok(n) => hasher.update(&buffer[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

struct Download<'a> {
    url: &'a str,
    to: &'a Path,
    max_bytes: u64,
}

/// What a server sends.
struct Answer {
    /// Where in the file it begins.
    start: u64,
    /// Length of the whole file, where the server says it.
    total: Option<u64>,
    body: Box<dyn Read>,
}

impl Download<'_> {
    fn run(&self, progress: &mut dyn FnMut(u64, Option<u64>), stop: &AtomicBool) -> Result<Fetched, Error> {
        if self.to.exists() {
            return check_hash(self.to).map(|_| Fetched::AlreadyThere);
        }
        let Some(promised) = hash_in_name(self.to) else {
            let name = self.to.display();
            return Err(self.error(format!("{name} has no hash at the end of its name to check the download by")));
        };
        let (agent, host) = self.agent()?;
        let path = self.part_path();
        let io = |e| Error::io("write", &path)(e);
        let folder = self.to.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        create_folder(folder)?;
        let mut part =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(io)?;
        part.try_lock().map_err(|e| Error::file(&path, format!("another command is downloading it ({e})")))?;
        if self.to.exists() {
            // Another call finished while this one opened its file.
            let _ = self.discard();
            return check_hash(self.to).map(|_| Fetched::AlreadyThere);
        }

        let have = part.metadata().map_err(io)?.len();
        let answer = self.ask(&agent, &host, if have > self.max_bytes { 0 } else { have });
        if answer.is_err() && have == 0 {
            self.discard()?;
        }
        if !self.receive(answer?, &host, &mut part, progress, stop)? {
            return Ok(Fetched::Interrupted);
        }
        part.sync_all().and_then(|()| part.rewind()).map_err(io)?;
        let hash = sha256(&part).map_err(Error::io("read", &path))?;
        if !hash.starts_with(promised) {
            self.discard()?;
            return Err(self.error(format!(
                "the SHA-256 of what arrived begins with {}, not with {promised}: it was damaged on its way, or the \
                 file there is another one. It was deleted: try again, or {}",
                &hash[..promised.len()],
                self.other_way()
            )));
        }
        fs::rename(&path, self.to).map_err(Error::io("write", self.to))?;
        sync_folder(folder);
        Ok(Fetched::Finished)
    }

    /// Writes what comes to the part, and says whether that is all of it; it is not after `stop`.
    fn receive(
        &self,
        mut answer: Answer,
        host: &str,
        part: &mut File,
        progress: &mut dyn FnMut(u64, Option<u64>),
        stop: &AtomicBool,
    ) -> Result<bool, Error> {
        let path = self.part_path();
        let io = |e| Error::io("write", &path)(e);
        let (mut done, total) = (answer.start, answer.total);
        part.set_len(done).and_then(|()| part.seek(SeekFrom::End(0))).map_err(io)?;
        let mut buffer = vec![0; 1 << 16];
        loop {
            if total.unwrap_or(done).max(done) > self.max_bytes {
                self.discard()?;
                return Err(self.error(format!("{host} sends a file of more than {} bytes", self.max_bytes)));
            }
            progress(done, total);
            if stop.load(Ordering::Relaxed) {
                return Ok(false);
            }
            match answer.body.read(&mut buffer) {
                Ok(0) if total.is_some_and(|total| done < total) => return Err(self.cut(done, total, "it ends early")),
                Ok(0) => return Ok(true),
                Ok(n) => {
                    part.write_all(&buffer[..n]).map_err(io)?;
                    done += n as u64;
                }
                Err(e) => return Err(self.cut(done, total, &e.to_string())),
            }
        }
    }

    /// What asks servers, and the host that is asked first.
    fn agent(&self) -> Result<(Agent, String), Error> {
        let uri: Uri = self.url.parse().map_err(|e| self.error(format!("this is not the address of a file ({e})")))?;
        let host = uri.host().ok_or_else(|| self.error("this is not the address of a file"))?.to_string();
        let bare = host.trim_matches(['[', ']']);
        let this_machine = bare == "localhost" || bare.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback());
        let mut config = Agent::config_builder()
            .https_only(!this_machine)
            .http_status_as_error(false)
            .timeout_connect(Some(PATIENCE))
            .timeout_per_read(Some(PATIENCE))
            .tls_config(TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build());
        if this_machine {
            config = config.proxy(None);
        }
        Ok((config.build().new_agent(), host))
    }

    /// Asks for the file from byte `have` on. The answer begins there, or at 0 if that is all the server can give.
    fn ask(&self, agent: &Agent, host: &str, have: u64) -> Result<Answer, Error> {
        let mut request = agent.get(self.url);
        if have > 0 {
            request = request.header("Range", format!("bytes={have}-"));
        }
        let response = request.call().map_err(|e| self.no_answer(agent, host, e))?;
        let range = response.headers().get("Content-Range").and_then(|v| v.to_str().ok()).unwrap_or_default();
        let range = content_range(range);
        let status = response.status();
        let body = response.into_body();
        let length = body.content_length();
        match (status, range) {
            (StatusCode::OK, _) => Ok(Answer { start: 0, total: length, body: Box::new(body.into_reader()) }),
            (StatusCode::PARTIAL_CONTENT, (Some(start), total)) if have > 0 && start == have => {
                let total = total.or(length.map(|l| have.saturating_add(l)));
                Ok(Answer { start, total, body: Box::new(body.into_reader()) })
            }
            // There is nothing after what is there already.
            (StatusCode::RANGE_NOT_SATISFIABLE, (None, Some(total))) if have > 0 && total == have => {
                Ok(Answer { start: have, total: Some(total), body: Box::new(io::empty()) })
            }
            (StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE, _) if have > 0 => {
                self.ask(agent, host, 0)
            }
            _ => Err(self.error(format!("{host} answers {status}. Try again later, or {}", self.other_way()))),
        }
    }

    /// Where the file is until it is whole.
    fn part_path(&self) -> PathBuf {
        let mut name = self.to.as_os_str().to_owned();
        name.push(".part");
        PathBuf::from(name)
    }

    fn discard(&self) -> Result<(), Error> {
        let path = self.part_path();
        fs::remove_file(&path).map_err(Error::io("delete", &path))
    }

    fn no_answer(&self, agent: &Agent, host: &str, cause: ureq::Error) -> Error {
        let proxy = match agent.config().proxy() {
            Some(p) if !self.url.parse().is_ok_and(|uri| p.is_no_proxy(&uri)) => {
                format!(" through the proxy {}:{} of the environment", p.host(), p.port())
            }
            _ => String::new(),
        };
        let cause = match cause {
            ureq::Error::Io(e) => e.to_string(),
            ureq::Error::RequireHttpsOnly(url) => format!("{url} is not https"),
            // Connections tell their troubles as `Io`; this is what making ready for one says.
            ureq::Error::Rustls(e) => format!("{e} (Debian has them in the package ca-certificates)"),
            e => e.to_string(),
        };
        self.error(format!("nothing comes from {host}{proxy}: {cause}. Check the network, or {}", self.other_way()))
    }

    fn cut(&self, done: u64, total: Option<u64>, cause: &str) -> Error {
        let of = total.map(|total| format!(" of {total}")).unwrap_or_default();
        self.error(format!(
            "the connection broke after {done}{of} bytes ({cause}). They are kept: run this again to continue"
        ))
    }

    /// How to get the file without this machine's network.
    fn other_way(&self) -> String {
        format!(
            "download it on another machine, and copy it to {} or give its path (--features inception:PATH)",
            self.to.display()
        )
    }

    fn error(&self, message: impl Into<String>) -> Error {
        Error::Fetch { url: self.url.to_string(), message: message.into() }
    }
}

/// The first byte and the length of the whole file from a `Content-Range`, as far as it says them: `bytes 5-9/10`,
/// `bytes 5-9/*`, `bytes */10`.
fn content_range(value: &str) -> (Option<u64>, Option<u64>) {
    let (range, total) = value.trim_start_matches("bytes ").split_once('/').unwrap_or_default();
    (range.split_once('-').and_then(|(first, _)| first.parse().ok()), total.parse().ok())
}

#[cfg(test)]
mod tests;
