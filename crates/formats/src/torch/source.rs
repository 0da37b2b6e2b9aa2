//! Bytes of a pickle: never more than there are, and the numbers and texts written in them.

use super::Fault;
use std::io::{BufRead, Read};

/// A reader that knows how much is left, so that a declared length can be checked before memory is taken for it.
pub(super) struct Source<R> {
    reader: R,
    left: u64,
}

impl<R: BufRead> Source<R> {
    /// Reads at most `length` bytes of `reader`.
    pub(super) fn new(reader: R, length: u64) -> Self {
        Self { reader, left: length }
    }

    /// How many bytes are left.
    pub(super) fn left(&self) -> u64 {
        self.left
    }

    /// Goes to the end, which must come when it should.
    pub(super) fn finish(mut self) -> Result<(), Fault> {
        let rest = std::io::copy(&mut (&mut self.reader).take(self.left.saturating_add(1)), &mut std::io::sink());
        match rest {
            Ok(bytes) if bytes == self.left => Ok(()),
            Ok(_) => Err("is damaged: its pickle is longer or shorter than its archive says".into()),
            Err(e) => Err(format!("is damaged ({e})")),
        }
    }

    /// The next `length` bytes.
    pub(super) fn take(&mut self, length: u64) -> Result<Vec<u8>, Fault> {
        if length > self.left {
            return Err(cut_off());
        }
        let mut bytes = Vec::new();
        let read = (&mut self.reader).take(length).read_to_end(&mut bytes).map_err(|e| format!("is damaged ({e})"))?;
        if (read as u64) < length {
            return Err(cut_off());
        }
        self.left -= length;
        Ok(bytes)
    }

    /// The next `N` bytes.
    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        if (N as u64) > self.left {
            return Err(cut_off());
        }
        let mut bytes = [0; N];
        self.reader.read_exact(&mut bytes).map_err(|_| cut_off())?;
        self.left -= N as u64;
        Ok(bytes)
    }

    /// The next byte.
    pub(super) fn byte(&mut self) -> Result<u8, Fault> {
        self.array().map(|[byte]| byte)
    }

    /// Bytes up to the end of the line.
    pub(super) fn line(&mut self) -> Result<Vec<u8>, Fault> {
        let mut bytes = Vec::new();
        let read = (&mut self.reader).take(self.left).read_until(b'\n', &mut bytes);
        self.left -= read.map_err(|e| format!("is damaged ({e})"))? as u64;
        match bytes.pop() {
            Some(b'\n') => Ok(bytes),
            _ => Err(cut_off()),
        }
    }

    /// The line as a number.
    pub(super) fn parse<T: std::str::FromStr>(&mut self) -> Result<T, Fault> {
        let line = self.line()?;
        std::str::from_utf8(&line)
            .ok()
            .and_then(|text| text.trim_end_matches('L').parse().ok())
            .ok_or_else(|| "is damaged: its pickle has something else in place of a number".into())
    }

    /// UTF-8 text of a length; Python also writes lone surrogates, which become replacement characters.
    pub(super) fn text(&mut self, length: u64) -> Result<String, Fault> {
        let bytes = self.take(length)?;
        Ok(String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()))
    }
}

fn cut_off() -> Fault {
    "is cut off: copy or download it again".into()
}

/// Bytes as text, one character each, which is how PyTorch and NumPy read what Python 2 wrote.
pub(super) fn latin1(bytes: &[u8]) -> String {
    bytes.iter().map(|&b| char::from(b)).collect()
}

/// A two's-complement number of any length, if 128 bits hold it.
pub(super) fn long(bytes: &[u8]) -> Option<i128> {
    let fill = if bytes.last().is_some_and(|b| b & 0x80 != 0) { 0xff } else { 0 };
    let mut wide = [fill; 16];
    wide.get_mut(..bytes.len())?.copy_from_slice(bytes);
    Some(i128::from_le_bytes(wide))
}

/// A Python 2 string literal, quoted and escaped.
pub(super) fn literal(line: &[u8]) -> Option<Vec<u8>> {
    let ([b'\'', inner @ .., b'\''] | [b'"', inner @ .., b'"']) = line else { return None };
    let mut out = Vec::new();
    let mut rest = inner.iter().copied();
    while let Some(byte) = rest.next() {
        out.push(match byte {
            b'\\' => match rest.next()? {
                b'n' => b'\n',
                b'r' => b'\r',
                b't' => b'\t',
                b'x' => hexadecimal(&mut rest, 2)? as u8,
                other @ (b'\\' | b'\'' | b'"') => other,
                _ => return None,
            },
            byte => byte,
        });
    }
    Some(out)
}

/// Text in which all beyond latin-1 is escaped, as protocol 0 writes it.
pub(super) fn unescape(line: &[u8]) -> Option<String> {
    let mut out = String::new();
    let mut rest = line.iter().copied();
    while let Some(byte) = rest.next() {
        if byte != b'\\' {
            out.push(char::from(byte));
            continue;
        }
        let code = match rest.next() {
            Some(b'u') => hexadecimal(&mut rest, 4)?,
            Some(b'U') => hexadecimal(&mut rest, 8)?,
            // Any other backslash stands for itself.
            other => {
                out.push('\\');
                out.extend(other.map(char::from));
                continue;
            }
        };
        out.push(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER));
    }
    Some(out)
}

fn hexadecimal(bytes: &mut impl Iterator<Item = u8>, digits: usize) -> Option<u32> {
    (0..digits).try_fold(0, |n: u32, _| Some((n << 4) | char::from(bytes.next()?).to_digit(16)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_beyond_the_end_is_refused() {
        let bytes = *b"abc\ndef";
        let mut source = Source::new(&bytes[..], 7);
        assert!(source.take(8).is_err());
        assert!(source.take(1 << 40).is_err());
        assert_eq!(source.line().unwrap(), b"abc");
        assert_eq!(source.left(), 3);
        assert!(source.array::<4>().is_err());
        assert!(source.line().is_err());
        // A claim that is larger than what the reader gives.
        assert!(Source::new(&bytes[..], 1 << 40).take(1 << 39).is_err());
    }

    #[test]
    fn long_numbers_have_any_length() {
        assert_eq!(long(&[]), Some(0));
        assert_eq!(long(&[0xff]), Some(-1));
        assert_eq!(long(&[0xff, 0]), Some(255));
        assert_eq!(long(&[0, 0, 0, 0, 0, 0, 0, 0x80]), Some(i64::MIN as i128));
        assert_eq!(long(&[1; 17]), None);
    }

    #[test]
    fn escapes_are_undone() {
        assert_eq!(literal(br"'a\x00\'\\\n'").unwrap(), b"a\0'\\\n");
        assert_eq!(literal(b"\"it's\"").unwrap(), b"it's");
        for bad in [&b"'"[..], b"", b"'a", b"a", br"'\x1'", br"'\'"] {
            assert_eq!(literal(bad), None, "{bad:?}");
        }
        assert_eq!(unescape(b"a\\u03b5\\U0001F600\xe9\\d").unwrap(), "a\u{3b5}\u{1f600}\u{e9}\\d");
        assert_eq!(unescape(br"\u03"), None);
    }
}
