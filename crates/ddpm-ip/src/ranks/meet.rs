//! How processes find each other by TCP: they show a secret and their rank.

use std::io::{Error, ErrorKind, Read, Result, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

/// How long ranks wait for each other to connect.
pub(super) const MEETING: Duration = Duration::from_mins(1);

/// Bytes of a secret.
pub(super) const TOKEN: usize = 32;

/// Waits for so many processes that know the secret, others are turned away. Their ranks, what each shows after it (`more` bytes),
/// and the connections.
pub(super) fn accept(
    listener: &TcpListener,
    token: &[u8; TOKEN],
    count: usize,
    more: usize,
) -> Result<Vec<(usize, Vec<u8>, TcpStream)>> {
    listener.set_nonblocking(true)?;
    let (begin, mut met) = (Instant::now(), Vec::<(usize, Vec<u8>, TcpStream)>::new());
    while met.len() < count {
        match listener.accept() {
            Ok((mut stream, _)) => {
                stream.set_nonblocking(false)?;
                stream.set_read_timeout(Some(Duration::from_secs(5)))?;
                let mut shown = vec![0; TOKEN + 4 + more];
                if stream.read_exact(&mut shown).is_err() || shown[..TOKEN] != token[..] {
                    continue;
                }
                stream.set_read_timeout(None)?;
                let more = shown.split_off(TOKEN + 4);
                let rank = u32::from_le_bytes(shown[TOKEN..].try_into().expect("four bytes")) as usize;
                if met.iter().any(|&(other, ..)| other == rank) {
                    return Err(Error::other(format!("two processes say that they are rank {rank}")));
                }
                met.push((rank, more, stream));
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                if begin.elapsed() > MEETING {
                    let message = format!("{} of {count} processes had connected after a minute", met.len());
                    return Err(Error::new(ErrorKind::TimedOut, message));
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(e) => return Err(e),
        }
    }
    Ok(met)
}

/// Connects to a process that listens, or will soon.
pub(super) fn connect(
    at: impl ToSocketAddrs + Copy,
    token: &[u8; TOKEN],
    rank: usize,
    more: &[u8],
) -> Result<TcpStream> {
    let begin = Instant::now();
    let mut stream = loop {
        match TcpStream::connect(at) {
            Ok(stream) => break stream,
            Err(e) if begin.elapsed() > MEETING => return Err(e),
            // Names may not be known yet, either, where machines have just begun.
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    };
    stream.write_all(&[&token[..], &(rank as u32).to_le_bytes(), more].concat())?;
    Ok(stream)
}
