//! TensorBoard's log files: records of the protocol buffer message `Event`, as TensorFlow's `EventsWriter` writes them.
//!
//! A record is the length of a message (u64, little-endian), a checksum of it, the message, a checksum of the message. Of
//! the messages there are three kinds: the file's version, the start of a session (after which TensorBoard forgets values
//! of later steps that it had seen, for a resumed run), and the values of a step.

use super::log::Log;
use ddpm_ip::Error;
use ddpm_ip::file::create_folder;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Fields of the messages.
mod field {
    pub(super) const WALL_TIME: u8 = 1;
    pub(super) const STEP: u8 = 2;
    pub(super) const FILE_VERSION: u8 = 3;
    pub(super) const SUMMARY: u8 = 5;
    pub(super) const SESSION_LOG: u8 = 7;
    pub(super) const SUMMARY_VALUE: u8 = 1;
    pub(super) const TAG: u8 = 1;
    pub(super) const SIMPLE_VALUE: u8 = 2;
    pub(super) const STATUS: u8 = 1;
}

/// The start of a session.
const START: u64 = 1;

/// Kinds of values in a message.
#[derive(Clone, Copy)]
enum Wire {
    Varint = 0,
    Fixed64 = 1,
    Bytes = 2,
    Fixed32 = 5,
}

/// A message that is being written.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn key(&mut self, field: u8, wire: Wire) {
        self.0.push(field << 3 | wire as u8);
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn integer(mut self, field: u8, value: u64) -> Self {
        self.key(field, Wire::Varint);
        self.varint(value);
        self
    }

    fn double(mut self, field: u8, value: f64) -> Self {
        self.key(field, Wire::Fixed64);
        self.0.extend(value.to_le_bytes());
        self
    }

    fn float(mut self, field: u8, value: f32) -> Self {
        self.key(field, Wire::Fixed32);
        self.0.extend(value.to_le_bytes());
        self
    }

    fn bytes(mut self, field: u8, value: &[u8]) -> Self {
        self.key(field, Wire::Bytes);
        self.varint(value.len() as u64);
        self.0.extend(value);
        self
    }
}

/// CRC-32C, rotated and shifted so that it is not mistaken for a checksum of a checksum.
fn masked_crc(data: &[u8]) -> u32 {
    let crc = !data.iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| crc >> 1 ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 })
    });
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

fn record(message: &[u8]) -> Vec<u8> {
    let length = (message.len() as u64).to_le_bytes();
    let parts = [&length[..], &masked_crc(&length).to_le_bytes(), message, &masked_crc(message).to_le_bytes()];
    parts.concat()
}

/// A file of events.
pub(super) struct TensorBoard {
    path: PathBuf,
    file: File,
}

impl TensorBoard {
    /// Begins a new file in `folder`, of a run that goes on at `step`.
    pub(super) fn open(folder: &Path, step: u64) -> Result<Self, Error> {
        create_folder(folder)?;
        let id = std::process::id();
        let path = folder.join(format!("events.out.tfevents.{:010}.{id}", now() as u64));
        let file = OpenOptions::new().create(true).append(true).open(&path).map_err(Error::io("write", &path))?;
        let mut this = Self { path, file };
        this.write(Message::default().double(field::WALL_TIME, now()).bytes(field::FILE_VERSION, b"brain.Event:2"))?;
        let start = Message::default().integer(field::STATUS, START);
        this.write(event(step + 1).bytes(field::SESSION_LOG, &start.0))?;
        Ok(this)
    }

    fn write(&mut self, message: Message) -> Result<(), Error> {
        self.file.write_all(&record(&message.0)).map_err(Error::io("write", &self.path))
    }
}

impl Log for TensorBoard {
    fn log(&mut self, line: &[(String, f64)]) -> Result<(), Error> {
        let step = line.iter().find(|(key, _)| key == "step").map_or(0, |(_, step)| *step as u64);
        let summary = line.iter().filter(|(key, _)| key != "step").fold(Message::default(), |summary, (key, value)| {
            let value = Message::default().bytes(field::TAG, key.as_bytes()).float(field::SIMPLE_VALUE, *value as f32);
            summary.bytes(field::SUMMARY_VALUE, &value.0)
        });
        self.write(event(step).bytes(field::SUMMARY, &summary.0))
    }

    fn sync(&self) -> Result<(), Error> {
        self.file.sync_data().map_err(Error::io("write", &self.path))
    }
}

fn event(step: u64) -> Message {
    Message::default().double(field::WALL_TIME, now()).integer(field::STEP, step)
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The check value of CRC-32C in published tables, before the mask.
    #[test]
    fn checksums_are_crc_32c() {
        assert_eq!(masked_crc(b"123456789"), 0xe306_9283_u32.rotate_right(15).wrapping_add(0xa282_ead8));
    }

    #[test]
    fn messages_are_protocol_buffers() {
        let value = Message::default().bytes(field::TAG, b"loss").float(field::SIMPLE_VALUE, 0.5);
        assert_eq!(value.0, [0x0a, 4, b'l', b'o', b's', b's', 0x15, 0, 0, 0, 0x3f]);
        assert_eq!(Message::default().integer(field::STEP, 300).0, [0x10, 0xac, 0x02]);
        assert_eq!(Message::default().double(field::WALL_TIME, 1.0).0, [0x09, 0, 0, 0, 0, 0, 0, 0xf0, 0x3f]);
    }
}
