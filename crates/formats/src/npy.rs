//! The head of NumPy's npy format: `\x93NUMPY`, the format's version, and a dictionary in Python's notation that says type,
//! order and shape (numpy.lib.format).

use std::io::{Error, Read, Result, Write};

/// What every file begins with.
pub(crate) const MAGIC: [u8; 6] = *b"\x93NUMPY";

/// The longest dictionary that is read: a shape of a thousand dimensions would fit.
const MOST: usize = 1 << 16;

/// What the head of an array says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// The type as NumPy writes it, such as `<f4`.
    pub(crate) descr: String,
    /// Whether the first dimension is the fastest.
    pub(crate) fortran: bool,
    /// Length of each dimension.
    pub(crate) shape: Vec<usize>,
}

fn wrong(what: &str) -> Error {
    Error::other(format!("its header is not that of a NumPy array: {what}"))
}

impl Header {
    /// Reads what stands before an array's values.
    pub(crate) fn read(reader: &mut dyn Read) -> Result<Self> {
        let mut begin = [0; 8];
        reader.read_exact(&mut begin)?;
        if begin[..6] != MAGIC {
            return Err(wrong("it does not start like one"));
        }
        let length = if begin[6] == 1 {
            let mut bytes = [0; 2];
            reader.read_exact(&mut bytes)?;
            usize::from(u16::from_le_bytes(bytes))
        } else {
            let mut bytes = [0; 4];
            reader.read_exact(&mut bytes)?;
            u32::from_le_bytes(bytes) as usize
        };
        if length > MOST {
            return Err(wrong("it is too long"));
        }
        let mut text = vec![0; length];
        reader.read_exact(&mut text)?;
        let text = String::from_utf8(text).map_err(|_| wrong("it is not text"))?;
        parse(&text)
    }

    /// Writes the head of an array in C order, as NumPy does: as long as a multiple of 64 bytes.
    pub(crate) fn write(writer: &mut dyn Write, descr: &str, shape: &[usize]) -> Result<()> {
        let mut lengths = shape.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
        if shape.len() == 1 {
            // Python's tuple of one.
            lengths.push(',');
        }
        let text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({lengths}), }}");
        let padded = (MAGIC.len() + 4 + text.len() + 1).next_multiple_of(64) - MAGIC.len() - 4;
        let length = u16::try_from(padded).map_err(|_| wrong("a shape of too many dimensions"))?;
        writer.write_all(&MAGIC)?;
        writer.write_all(&[1, 0])?;
        writer.write_all(&length.to_le_bytes())?;
        writer.write_all(format!("{text:width$}\n", width = padded - 1).as_bytes())
    }

    /// Kind (`f`, `i`, `u` …) and bytes of a value, and whether its bytes come the largest first.
    pub(crate) fn kind(&self) -> Option<(char, usize, bool)> {
        let mut letters = self.descr.chars();
        let mut kind = letters.next()?;
        let big = match kind {
            '<' | '|' | '=' => false,
            '>' => true,
            _ => return None,
        };
        kind = letters.next()?;
        Some((kind, letters.as_str().parse().ok()?, big))
    }
}

/// Values of `size` bytes each whose first dimension is the fastest, so that their last one is.
pub(crate) fn c_order(bytes: &[u8], shape: &[usize], size: usize) -> Vec<u8> {
    let strides: Vec<usize> = shape
        .iter()
        .scan(size, |stride, &length| {
            let this = *stride;
            *stride *= length;
            Some(this)
        })
        .collect();
    let mut out = Vec::with_capacity(bytes.len());
    for index in 0..bytes.len() / size {
        let mut rest = index;
        let mut at = 0;
        for (&length, &stride) in shape.iter().zip(&strides).rev() {
            at += rest % length * stride;
            rest /= length;
        }
        out.extend_from_slice(&bytes[at..at + size]);
    }
    out
}

/// The dictionary.
fn parse(text: &str) -> Result<Header> {
    let mut rest = Text(text);
    let (mut descr, mut fortran, mut shape) = (None, None, None);
    rest.expect('{')?;
    while !rest.take('}') {
        let key = rest.string()?;
        rest.expect(':')?;
        match key {
            "descr" if rest.take('[') => return Err(wrong("a structured array; save only one of its fields")),
            "descr" => descr = Some(rest.string()?.to_string()),
            "fortran_order" => fortran = Some(rest.boolean()?),
            "shape" => shape = Some(rest.tuple()?),
            _ => return Err(wrong("it has an unknown entry")),
        }
        rest.take(',');
    }
    let missing = || wrong("an entry is missing");
    Ok(Header {
        descr: descr.ok_or_else(missing)?,
        fortran: fortran.ok_or_else(missing)?,
        shape: shape.ok_or_else(missing)?,
    })
}

/// What is left of a text.
struct Text<'a>(&'a str);

impl<'a> Text<'a> {
    /// Passes over a letter and the spaces before it, if it comes next.
    fn take(&mut self, letter: char) -> bool {
        let rest = self.0.trim_start().strip_prefix(letter);
        self.0 = rest.unwrap_or(self.0);
        rest.is_some()
    }

    fn expect(&mut self, letter: char) -> Result<()> {
        if self.take(letter) { Ok(()) } else { Err(wrong(&format!("a `{letter}` is missing"))) }
    }

    fn string(&mut self) -> Result<&'a str> {
        let quote = if self.take('"') {
            '"'
        } else {
            self.expect('\'')?;
            '\''
        };
        let (inside, rest) = self.0.split_once(quote).ok_or_else(|| wrong("a string does not end"))?;
        self.0 = rest;
        Ok(inside)
    }

    fn boolean(&mut self) -> Result<bool> {
        let text = self.0.trim_start();
        for (word, value) in [("True", true), ("False", false)] {
            if let Some(rest) = text.strip_prefix(word) {
                self.0 = rest;
                return Ok(value);
            }
        }
        Err(wrong("neither True nor False"))
    }

    fn tuple(&mut self) -> Result<Vec<usize>> {
        self.expect('(')?;
        let mut lengths = Vec::new();
        while !self.take(')') {
            let text = self.0.trim_start();
            let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
            lengths.push(text[..end].parse().map_err(|_| wrong("a length is not a number"))?);
            // Python 2 wrote an L after long numbers.
            self.0 = text[end..].strip_prefix('L').unwrap_or(&text[end..]);
            self.take(',');
        }
        Ok(lengths)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Header> {
        parse(text)
    }

    #[test]
    fn what_is_written_is_read_and_aligned() {
        for shape in [vec![], vec![7], vec![2, 0, 30_000_000_000]] {
            let mut bytes = Vec::new();
            Header::write(&mut bytes, "<f4", &shape).expect("memory");
            assert_eq!(bytes.len() % 64, 0);
            let expected = Header { descr: "<f4".into(), fortran: false, shape };
            assert_eq!(Header::read(&mut &bytes[..]).expect("a header"), expected);
            for cut in 0..bytes.len() {
                assert!(Header::read(&mut &bytes[..cut]).is_err(), "cut off after {cut}");
            }
        }
    }

    #[test]
    fn headers_of_other_versions_of_numpy_are_read() {
        let found = read("{\"shape\" : (3L,4L ) ,'descr':'>i8', 'fortran_order':True}   \n").expect("a header");
        assert_eq!(found, Header { descr: ">i8".into(), fortran: true, shape: vec![3, 4] });
        assert_eq!(found.kind(), Some(('i', 8, true)));
        for (descr, kind) in [("|u1", Some(('u', 1, false))), ("<f2", Some(('f', 2, false))), ("O", None), ("", None)] {
            assert_eq!(Header { descr: descr.into(), fortran: false, shape: vec![] }.kind(), kind);
        }
    }

    #[test]
    fn damaged_headers_are_named() {
        for (text, part) in [
            ("", "`{` is missing"),
            ("{'descr': [('a', '<f4')], }", "structured array"),
            ("{'descr': '<f4', 'fortran_order': False, }", "missing"),
            ("{'descr': '<f4', 'fortran_order': 0, }", "neither"),
            ("{'shape': (99999999999999999999999,)}", "not a number"),
            ("{'shape': (-1,)}", "not a number"),
            ("{'shape': (1,", "not a number"),
            ("{'other': 1}", "unknown"),
            ("{'descr': '<f4", "does not end"),
        ] {
            let error = read(text).expect_err(text).to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
