//! Notices a process that died or hangs while the others wait for it inside of MPI, where nobody can answer.
//!
//! Each process has a connection to rank 0, on which both sides send a byte every second, from a thread of its own. Who is silent
//! hangs, and who closes it without a farewell is dead.

use super::Ranks;
use super::meet::{TOKEN, accept, connect};
use super::mesh::secret;
use crate::Error;
use std::io::{ErrorKind, Read, Result, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How a watch is kept.
#[derive(Clone, Debug)]
pub struct Watch {
    /// The machine of rank 0 as the others reach it, if that is not its name.
    pub host: Option<String>,
    /// Where rank 0 listens; 0 for a port that is free.
    pub port: u16,
    /// How long a process may be silent.
    pub silence: Duration,
}

impl Default for Watch {
    fn default() -> Self {
        Self { host: None, port: 0, silence: Duration::from_secs(30) }
    }
}

const BEAT: u8 = b'.';
const FAREWELL: u8 = b'q';

/// The watch over the processes of a run. Dropping it takes leave.
pub struct Pulse {
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// The connection to a process.
struct Peer {
    rank: usize,
    stream: TcpStream,
    heard: Instant,
    left: bool,
}

impl Pulse {
    /// Begins to watch. `lost` is told, once and from another thread, who is gone or hangs; it should end the process.
    ///
    /// Rank 0 listens on loopback if all are on one machine, else on all addresses. It believes who shows a secret that it has told
    /// all ranks through their link.
    ///
    /// # Errors
    /// Ranks that cannot be reached.
    pub fn begin(
        ranks: &Ranks,
        watch: Watch,
        lost: impl Fn(&Error) + Send + 'static,
    ) -> std::result::Result<Self, Error> {
        let gone = |cause| Error::Gone { rank: ranks.rank(), cause };
        let one_machine = ranks.hosts.iter().all(|host| *host == ranks.hosts[0]);
        let named = watch.host.as_deref().unwrap_or(&ranks.hosts[0]);
        let (bound, reached) = if one_machine { ("127.0.0.1", "127.0.0.1") } else { ("0.0.0.0", named) };
        let listener = if ranks.leads() { Some(TcpListener::bind((bound, watch.port)).map_err(gone)?) } else { None };
        let port = listener.as_ref().map(TcpListener::local_addr).transpose().map_err(gone)?.map_or(0, |at| at.port());
        let invitation = ranks.told(&[&port.to_le_bytes()[..], &secret()].concat())?;
        let (port, token) = invitation.split_first_chunk::<2>().expect("as rank 0 sent it");
        let (port, token) = (u16::from_le_bytes(*port), token.first_chunk::<TOKEN>().expect("as rank 0 sent it"));
        let met = match listener {
            Some(listener) => accept(&listener, token, ranks.count() - 1, 0),
            None => connect((reached, port), token, ranks.rank(), &[]).map(|stream| vec![(0, Vec::new(), stream)]),
        };
        let peers = met.and_then(|met| met.into_iter().map(|(rank, _, stream)| Peer::new(rank, stream)).collect());
        let mut peers: Vec<Peer> = peers.map_err(gone)?;
        // All are connected before anybody is missed.
        ranks.gather(&[])?;
        let ends = Arc::new(AtomicBool::new(false));
        let (ended, ranks) = (Arc::clone(&ends), ranks.clone());
        let thread = std::thread::spawn(move || {
            let mut last = false;
            while !last {
                std::thread::park_timeout(Duration::from_secs(1));
                last = ended.load(Ordering::Relaxed);
                let byte = if last { FAREWELL } else { BEAT };
                for peer in peers.iter_mut().filter(|peer| !peer.left) {
                    let fate = peer.exchange(byte, watch.silence);
                    if let (Some(message), false) = (fate, last) {
                        lost(&ranks.failure(peer.rank, &message));
                        return;
                    }
                }
            }
        });
        Ok(Self { ends, thread: Some(thread) })
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

impl Peer {
    fn new(rank: usize, stream: TcpStream) -> Result<Self> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        Ok(Self { rank, stream, heard: Instant::now(), left: false })
    }

    /// Sends a byte and takes those that came; what is wrong with the other side, if something is.
    fn exchange(&mut self, byte: u8, silence: Duration) -> Option<String> {
        let ended = || Some("ended without a word".into());
        match self.stream.write(&[byte]) {
            Err(e) if e.kind() != ErrorKind::WouldBlock => self.left_or(ended()),
            _ => {
                let mut bytes = [0; 64];
                match self.stream.read(&mut bytes) {
                    Ok(0) => return ended(),
                    Ok(count) => {
                        self.heard = Instant::now();
                        self.left = bytes[..count].contains(&FAREWELL);
                    }
                    Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                    Err(_) => return ended(),
                }
                let silent = self.heard.elapsed() > silence;
                silent.then(|| format!("has not answered for {} s", silence.as_secs()))
            }
        }
    }

    /// What is wrong, unless the other side had taken leave.
    fn left_or(&mut self, wrong: Option<String>) -> Option<String> {
        let mut bytes = [0; 64];
        let said = self.stream.read(&mut bytes).unwrap_or(0);
        self.left = bytes[..said].contains(&FAREWELL);
        if self.left { None } else { wrong }
    }
}
