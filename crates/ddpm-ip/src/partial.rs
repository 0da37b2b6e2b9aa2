//! The images of an unfinished call, kept so that the same call goes on where it stopped.

use crate::event::{Emit, Event};
use crate::{Error, device};
use ddpm_net::Device;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// No more is read of a foreign file in search of the end of its line.
const LONGEST_LINE: u64 = 1 << 20;

/// Stands for the first byte of a file whose call has failed.
const FAILED: u8 = b'!';

/// `OUT.partial`: a line that says what is being made, and on a GPU by what; then the finished images' bytes.
pub(crate) struct Partial {
    path: PathBuf,
    file: File,
    /// Where the images begin.
    start: u64,
    image_bytes: u64,
}

impl Partial {
    /// Opens what an earlier call with the same `identity` (a line of text) left, or begins anew, and says how many
    /// whole images are there. Images of another identity are dropped if they may be `replace`d, or their call has [failed](Self::fail);
    /// `emit` is told if the images were begun by other engines of a GPU.
    ///
    /// # Errors
    /// A file with images of another identity, or that another process is writing.
    pub(crate) fn open(
        out: &Path,
        identity: &str,
        image_bytes: usize,
        replace: bool,
        device: Device,
        emit: &mut Emit,
    ) -> Result<(Self, usize), Error> {
        let mut name = out.as_os_str().to_owned();
        name.push(".partial");
        let path = PathBuf::from(name);
        let io = |e| Error::io("write", &path)(e);
        let engines = device::engines(device).map(|engines| format!("\t{engines}")).unwrap_or_default();
        let image_bytes = image_bytes as u64;
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(io)?;
        file.try_lock().map_err(|e| {
            Error::file(&path, format!("another command is writing it ({e}): repeat this one when that is done"))
        })?;
        let mut line = Vec::new();
        let mut reader = BufReader::new(std::io::Read::take(&file, LONGEST_LINE));
        reader.read_until(b'\n', &mut line).map_err(Error::io("read", &path))?;
        let (failed, own) = (line.first() == Some(&FAILED), identity.as_bytes()[0]);
        if failed {
            line[0] = own;
        }
        let before = line.strip_suffix(b"\n").and_then(|line| line.strip_prefix(identity.as_bytes()));
        let before = before.filter(|before| before.is_empty() || before[0] == b'\t').map(<[u8]>::to_vec);
        if before.is_none() {
            if !replace && !failed && file.metadata().map_err(io)?.len() > line.len() as u64 {
                let message = "holds images of an unfinished command with other settings or from another source: \
                               repeat that command to finish it, choose another --out, or delete this file";
                return Err(Error::file(&path, message));
            }
            file.set_len(0).and_then(|()| file.rewind()).map_err(io)?;
            file.write_all(format!("{identity}{engines}\n").as_bytes()).map_err(io)?;
        }
        if failed {
            file.rewind().and_then(|()| file.write_all(&[own])).map_err(io)?;
        }
        let before = before.unwrap_or_else(|| engines.as_bytes().to_vec());
        let start = (identity.len() + before.len()) as u64 + 1;
        let done = (file.metadata().map_err(io)?.len().saturating_sub(start)) / image_bytes;
        // An image that was cut off is drawn again.
        file.set_len(start + done * image_bytes).map_err(io)?;
        file.seek(SeekFrom::End(0)).map_err(io)?;
        if done > 0 && before != engines.as_bytes() {
            let before = String::from_utf8_lossy(before.strip_prefix(b"\t").unwrap_or(b"the processor")).into_owned();
            emit(Event::Notice(device::chosen_anew(&before)));
        }
        Ok((Self { path, file, start, image_bytes }, done as usize))
    }

    /// Notes that the call has failed: the same one may go on from here, and one with other settings may begin anew.
    pub(crate) fn fail(&mut self) -> Result<(), Error> {
        let mark = self.file.rewind().and_then(|()| self.file.write_all(&[FAILED]));
        mark.and_then(|()| self.file.seek(SeekFrom::End(0))).map(drop).map_err(Error::io("write", &self.path))
    }

    /// Adds finished images.
    pub(crate) fn append(&mut self, images: &[u8]) -> Result<(), Error> {
        self.file.write_all(images).and_then(|()| self.file.sync_data()).map_err(Error::io("write", &self.path))
    }

    /// Passes `count` images from the first on to `sink`, some at a time.
    pub(crate) fn read(
        &mut self,
        count: usize,
        mut sink: impl FnMut(&[u8]) -> std::io::Result<()>,
    ) -> std::io::Result<()> {
        self.file.seek(SeekFrom::Start(self.start))?;
        let mut buffer =
            vec![0; (self.image_bytes as usize).max(1 << 20) / self.image_bytes as usize * self.image_bytes as usize];
        let mut left = count * self.image_bytes as usize;
        while left > 0 {
            let n = left.min(buffer.len());
            std::io::Read::read_exact(&mut self.file, &mut buffer[..n])?;
            sink(&buffer[..n])?;
            left -= n;
        }
        Ok(())
    }

    /// The file has served: its images are elsewhere.
    pub(crate) fn remove(self) -> Result<(), Error> {
        fs::remove_file(&self.path).map_err(Error::io("remove", &self.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_failed_call_left_goes_on_or_makes_room() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("a");
        let open = |identity: &str| Partial::open(&out, identity, 2, false, Device::Cpu, &mut |_| {});
        let begun = |images: &[u8]| {
            let (mut partial, done) = open("this").unwrap();
            partial.append(images).unwrap();
            partial.fail().unwrap();
            done
        };
        assert_eq!(begun(b"12"), 0);
        // The same call knows its images, and is no failed one until it fails again.
        assert_eq!(open("this").unwrap().1, 1);
        assert!(open("that").is_err());
        assert_eq!(begun(b"34"), 1);
        assert_eq!(open("that").unwrap().1, 0);
        assert_eq!(fs::read(folder.path().join("a.partial")).unwrap(), b"that\n");
    }

    #[test]
    fn what_other_engines_began_goes_on_and_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("a");
        let open = |identity: &str| {
            let mut said = Vec::new();
            let opened = Partial::open(&out, identity, 2, false, Device::Cpu, &mut |event| said.push(event));
            (opened.map(|(_, done)| done), said)
        };
        fs::write(folder.path().join("a.partial"), "that\tsome GPU (cuDNN 9)\n12345").unwrap();
        let (done, said) = open("that");
        assert_eq!(done.unwrap(), 2);
        assert!(matches!(&said[..], [Event::Notice(text)] if text.contains("started on some GPU (cuDNN 9): ")));
        assert!(open("tha").0.is_err() && open("this").0.is_err());
        fs::write(folder.path().join("a.partial"), "that\n1234").unwrap();
        let (done, said) = open("that");
        assert!(done.unwrap() == 2 && said.is_empty());
    }
}
