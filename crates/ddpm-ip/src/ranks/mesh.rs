//! Processes that are joined by TCP, each with each other: where nothing else joins them.

use super::Link;
use super::meet::{TOKEN, accept, connect};
use sha2::{Digest, Sha256};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{Error, ErrorKind, Read, Result, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::ops::Range;

/// Where processes meet.
#[derive(Clone, Debug)]
pub struct Meeting {
    /// The machine of rank 0, as the others reach it.
    pub host: String,
    /// Where rank 0 listens.
    pub port: u16,
    /// Whether all are on one machine, so that nobody has to listen on any address but loopback.
    pub one_machine: bool,
    /// What the processes of a run know, and others do not.
    pub secret: String,
}

/// A connection of each process with each other.
pub struct Mesh {
    rank: usize,
    /// By rank; none for this process.
    peers: Vec<Option<TcpStream>>,
}

impl Mesh {
    /// Meets the others: each connects to rank 0 and says where it listens, hears from it where the others do and what their
    /// secret is, and connects to those of lower rank.
    ///
    /// # Errors
    /// A rank 0 that cannot be reached, and processes that do not come within a minute.
    pub fn meet(rank: usize, count: usize, meeting: &Meeting) -> Result<Self> {
        let named = |action: &str| {
            let place = format!("{}:{}", meeting.host, meeting.port);
            let action = action.to_string();
            move |e: Error| Error::new(e.kind(), format!("{action} {place}: {e}"))
        };
        let token: [u8; TOKEN] = Sha256::digest(&meeting.secret).into();
        let (any, loopback) = (Ipv4Addr::UNSPECIFIED, Ipv4Addr::LOCALHOST);
        let bound = if meeting.one_machine { loopback } else { any };
        let mut peers: Vec<Option<TcpStream>> = (0..count).map(|_| None).collect();
        if rank == 0 {
            let met = TcpListener::bind((bound, meeting.port)).and_then(|at| accept(&at, &token, count - 1, 6));
            let mut met = met.map_err(named("waiting at"))?;
            met.sort_by_key(|&(rank, ..)| rank);
            let same = |(_, more, _): &(usize, Vec<u8>, TcpStream)| more[2..] == (count as u32).to_le_bytes();
            if let Some((rank, ..)) = met.iter().find(|met| !same(met)) {
                return Err(Error::other(format!("rank {rank} was launched with another number of processes")));
            }
            if !met.iter().map(|&(rank, ..)| rank).eq(1..count) {
                return Err(Error::other(format!("the ranks of {count} processes are not 0 to {}", count - 1)));
            }
            let mut invitation: Vec<u8> = secret().into();
            for (_, more, stream) in &met {
                let port = u16::from_le_bytes([more[0], more[1]]);
                invitation.extend(format!("{}\n", SocketAddr::new(stream.peer_addr()?.ip(), port)).bytes());
            }
            for (rank, _, stream) in met {
                send(&stream, &[&invitation])?;
                peers[rank] = Some(stream);
            }
        } else {
            let listener = TcpListener::bind((bound, 0))?;
            let port = listener.local_addr()?.port();
            let host = if meeting.one_machine { "127.0.0.1" } else { &meeting.host };
            let more = [&port.to_le_bytes()[..], &(count as u32).to_le_bytes()].concat();
            let first = connect((host, meeting.port), &token, rank, &more).map_err(named("connecting to rank 0 at"))?;
            let invitation = receive(&first).map_err(named("waiting for the other processes at"))?;
            peers[0] = Some(first);
            let broken = || Error::new(ErrorKind::InvalidData, "rank 0 sent no list of processes");
            let (token, list) = invitation.split_first_chunk::<TOKEN>().ok_or_else(broken)?;
            let list = std::str::from_utf8(list).map_err(|_| broken())?;
            for (other, address) in (1..rank).zip(list.lines()) {
                let address: SocketAddr = address.parse().map_err(|_| broken())?;
                peers[other] = Some(connect(address, token, rank, &[])?);
            }
            for (other, _, stream) in accept(&listener, token, count - 1 - rank, 0)? {
                *peers.get_mut(other).ok_or_else(broken)? = Some(stream);
            }
        }
        peers.iter().flatten().try_for_each(|peer| peer.set_nodelay(true))?;
        Ok(Self { rank, peers })
    }

    /// Sends each other process its bytes, and takes what comes from each. In round r everybody sends to the process r places on
    /// and hears the one r places before, so that whoever waits is waited for by nobody.
    fn swap<'a>(
        &self,
        outgoing: impl Fn(usize) -> Vec<&'a [u8]> + Sync,
        mut take: impl FnMut(usize, &TcpStream) -> Result<()>,
    ) -> Result<()> {
        let (rank, count) = (self.rank, self.peers.len());
        let lost = |other: usize| {
            move |e: Error| {
                let why = if e.kind() == ErrorKind::UnexpectedEof { "ended".into() } else { e.to_string() };
                Error::new(e.kind(), format!("rank {other}: {why}"))
            }
        };
        let peer = |other: usize| self.peers[other].as_ref().expect("met");
        std::thread::scope(|scope| {
            let sender = scope.spawn(|| {
                let mut others = (1..count).map(|round| (rank + round) % count);
                others.try_for_each(|other| send(peer(other), &outgoing(other)).map_err(lost(other)))
            });
            let mut others = (1..count).map(|round| (rank + count - round) % count);
            let received = others.try_for_each(|other| take(other, peer(other)).map_err(lost(other)));
            if received.is_err() {
                // The sender may wait for somebody who is gone.
                self.peers.iter().flatten().for_each(|peer| drop(peer.shutdown(std::net::Shutdown::Both)));
            }
            let sent = sender.join().expect("the sender does not panic");
            received.and(sent)
        })
    }
}

/// Sends a length and so many bytes, which may lie in parts.
fn send(mut to: &TcpStream, parts: &[&[u8]]) -> Result<()> {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    to.write_all(&(len as u64).to_le_bytes())?;
    parts.iter().try_for_each(|part| to.write_all(part))
}

/// What [`send`] sent.
fn receive(mut from: &TcpStream) -> Result<Vec<u8>> {
    let mut len = [0; 8];
    from.read_exact(&mut len)?;
    let len = u64::from_le_bytes(len);
    let mut bytes = Vec::new();
    // Memory grows with what comes, whatever the length claims.
    from.take(len).read_to_end(&mut bytes)?;
    if bytes.len() as u64 == len { Ok(bytes) } else { Err(ErrorKind::UnexpectedEof.into()) }
}

/// A secret, from the system's source of randomness.
pub(super) fn secret() -> [u8; TOKEN] {
    let mut secret = [0; TOKEN];
    secret
        .chunks_mut(8)
        .for_each(|part| part.copy_from_slice(&RandomState::new().build_hasher().finish().to_le_bytes()));
    secret
}

/// What [`send`] sent, if it is as many values as belong here.
fn receive_into(mut from: &TcpStream, to: &mut [f32]) -> Result<()> {
    let (mut len, bytes) = ([0; 8], bytemuck::cast_slice_mut::<f32, u8>(to));
    from.read_exact(&mut len)?;
    let len = u64::from_le_bytes(len);
    if len != bytes.len() as u64 {
        let message = format!("it sent {len} bytes where {} belong", bytes.len());
        return Err(Error::new(ErrorKind::InvalidData, message));
    }
    from.read_exact(bytes)
}

impl Link for Mesh {
    fn rank(&self) -> usize {
        self.rank
    }

    fn count(&self) -> usize {
        self.peers.len()
    }

    fn gather(&self, mine: &[u8]) -> Result<Vec<Vec<u8>>> {
        let mut all = vec![Vec::new(); self.count()];
        all[self.rank] = mine.to_vec();
        self.swap(
            |_| vec![mine],
            |other, from| {
                all[other] = receive(from)?;
                Ok(())
            },
        )?;
        Ok(all)
    }

    fn exchange(&self, sends: &[Vec<&[f32]>], expected: &[usize]) -> Result<Vec<Vec<f32>>> {
        let mut received: Vec<Vec<f32>> = expected.iter().map(|&len| vec![0.0; len]).collect();
        self.swap(
            |other| sends[other].iter().map(|values| bytemuck::cast_slice(values)).collect(),
            |other, from| receive_into(from, &mut received[other]),
        )?;
        Ok(received)
    }

    fn spread(&self, values: &mut [f32], parts: &[Range<usize>]) -> Result<()> {
        let mine = values[parts[self.rank].clone()].to_vec();
        self.swap(
            |_| vec![bytemuck::cast_slice(&mine)],
            |other, from| receive_into(from, &mut values[parts[other].clone()]),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A port that is free, most likely.
    fn meeting() -> Meeting {
        let port = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
        Meeting { host: "localhost".into(), port, one_machine: true, secret: "ours".into() }
    }

    /// What threads come to that meet with these ranks and counts.
    fn threads<T: Send>(meeting: &Meeting, ranks: &[(usize, usize)], act: impl Fn(Result<Mesh>) -> T + Sync) -> Vec<T> {
        let act = &act;
        std::thread::scope(|scope| {
            let begin = |&(rank, count): &(usize, usize)| scope.spawn(move || act(Mesh::meet(rank, count, meeting)));
            let threads: Vec<_> = ranks.iter().map(begin).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    #[test]
    fn values_come_where_they_belong() {
        for count in 2..=5 {
            let ranks: Vec<(usize, usize)> = (0..count).map(|rank| (rank, count)).collect();
            threads(&meeting(), &ranks, |mesh| {
                let mesh = mesh.unwrap();
                let rank = mesh.rank();
                // More than a socket holds, and nothing.
                let said = mesh.gather(&vec![rank as u8; 3_000_000 * rank]).unwrap();
                assert!(said.iter().enumerate().all(|(rank, said)| *said == vec![rank as u8; 3_000_000 * rank]));
                // Rank a sends a + 2 b values to rank b, in two parts.
                let of = |from: usize, to: usize| vec![(100 * from + to) as f32; from + 2 * to];
                let values: Vec<Vec<f32>> = (0..count).map(|other| of(rank, other)).collect();
                let in_parts = |other: usize| {
                    let (one, two) = values[other].split_at(values[other].len() / 2);
                    if other == rank { Vec::new() } else { vec![one, two] }
                };
                let wanted: Vec<Vec<f32>> =
                    (0..count).map(|other| if other == rank { Vec::new() } else { of(other, rank) }).collect();
                let expected: Vec<usize> = wanted.iter().map(Vec::len).collect();
                let sends: Vec<Vec<&[f32]>> = (0..count).map(in_parts).collect();
                assert_eq!(mesh.exchange(&sends, &expected).unwrap(), wanted);
                let parts: Vec<Range<usize>> = (0..count).map(|rank| 7 * rank..7 * (rank + 1)).collect();
                let mut values = vec![-1.0; 7 * count];
                values[parts[rank].clone()].fill(rank as f32);
                mesh.spread(&mut values, &parts).unwrap();
                assert!(values.iter().enumerate().all(|(i, &value)| value == (i / 7) as f32));
                let mut values = vec![rank as f32; 11];
                mesh.sum(&mut values).unwrap();
                assert_eq!(values, [(count * (count - 1) / 2) as f32; 11]);
            });
        }
    }

    #[test]
    fn who_ends_is_named() {
        let results = threads(&meeting(), &[(0, 3), (1, 3), (2, 3)], |mesh| {
            let mesh = mesh.unwrap();
            mesh.gather(&[]).unwrap();
            if mesh.rank() == 1 { Ok(Vec::new()) } else { mesh.gather(&vec![0; 1_000_000]) }
        });
        assert!(results[1].is_ok());
        for rank in [0, 2] {
            let error = results[rank].as_ref().unwrap_err().to_string();
            // A process that lost rank 1 leaves, too.
            assert!(error.contains("rank 1: ") || error.contains(&format!("rank {}: ", 2 - rank)), "{error}");
        }
    }

    #[test]
    fn other_values_than_expected_are_refused() {
        let results = threads(&meeting(), &[(0, 2), (1, 2)], |mesh| {
            let mesh = mesh.unwrap();
            let mut sends = vec![Vec::new(); 2];
            sends[1 - mesh.rank()] = vec![&[0.0; 2][..]];
            mesh.exchange(&sends, &[2 + mesh.rank(), 2])
        });
        assert!(results[1].as_ref().unwrap_err().to_string().contains("rank 0: it sent 8 bytes where 12 belong"));
    }

    #[test]
    fn strangers_are_turned_away() {
        let ours = meeting();
        let said = |rank| Mesh::meet(rank, 2, &ours).unwrap().gather(&[rank as u8]).unwrap();
        std::thread::scope(|scope| {
            let first = scope.spawn(|| said(0));
            let mut stranger = connect(("127.0.0.1", ours.port), &[7; TOKEN], 1, &[0; 6]).unwrap();
            // It learns nothing, and does not count.
            assert!(matches!(stranger.read(&mut [0; 1]), Ok(0) | Err(_)));
            assert_eq!(said(1), [[0], [1]]);
            assert_eq!(first.join().unwrap(), [[0], [1]]);
        });
    }

    #[test]
    fn wrong_ranks_are_named() {
        let says = |ranks: &[(usize, usize)], words: &str| {
            let results = threads(&meeting(), ranks, |mesh| mesh.map(drop));
            let error = results[0].as_ref().unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        };
        says(&[(0, 3), (1, 3), (1, 3)], "two processes say that they are rank 1");
        says(&[(0, 3), (1, 3), (2, 4)], "rank 2 was launched with another number of processes");
        says(&[(0, 3), (1, 3), (5, 3)], "the ranks of 3 processes are not 0 to 2");
    }
}
