//! Mutations: of bytes, and of what a format makes of them.

use crate::seeds::{gzipped, headed, legacy, npy, pickles, zipped};
use zip::CompressionMethod;

/// Makes a file of the seeds of a format.
pub(crate) type Mutate = fn(&mut Random, &[Vec<u8>]) -> Vec<u8>;

/// SplitMix64.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64, execution: u64) -> Self {
        Self(seed.wrapping_mul(0xD1B5_4A32_D192_ED03) ^ execution.wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    fn pick<T: Clone>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())].clone()
    }
}

/// Numbers at which readers go wrong.
const NUMBERS: [u64; 22] = [
    0,
    1,
    2,
    3,
    7,
    8,
    15,
    16,
    127,
    128,
    255,
    256,
    511,
    512,
    65535,
    65536,
    1 << 31,
    u32::MAX as u64,
    1 << 32,
    1 << 62,
    1 << 63,
    u64::MAX,
];

/// Some changes of bytes, whatever they mean.
fn change(random: &mut Random, data: &mut Vec<u8>) {
    for _ in 0..=random.below(4) {
        let at = random.below(data.len() + 1);
        let length = random.below(17).min(data.len() - at);
        match random.below(9) {
            0 if at < data.len() => data[at] ^= 1 << random.below(8),
            1 if at < data.len() => data[at] = random.next() as u8,
            2 => data.truncate(at),
            3 => drop(data.drain(at..at + length)),
            4 => {
                let copy = data[at..at + length].to_vec();
                let to = random.below(data.len() + 1);
                data.splice(to..to, copy);
            }
            5 => {
                let new: Vec<u8> = (0..length).map(|_| random.next() as u8).collect();
                data.splice(at..at, new);
            }
            // A number of the format, smallest byte first or last, often at an even place.
            _ => {
                let size = random.pick(&[1, 2, 4, 8]);
                let near = [data.len() as u64, at as u64, random.next() % 4096];
                let number = if random.below(3) == 0 { random.pick(&near) } else { random.pick(&NUMBERS) };
                let mut digits = number.to_le_bytes()[..size].to_vec();
                if random.below(3) == 0 {
                    digits.reverse();
                }
                let at = if random.below(2) == 0 { at & !1 } else { at };
                let end = data.len().min(at + size);
                if at < end {
                    data[at..end].copy_from_slice(&digits[..end - at]);
                }
            }
        }
    }
}

/// Bytes alone; also two files cut together, and compressed.
pub(crate) fn bytes(random: &mut Random, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut data = random.pick(seeds);
    if random.below(8) == 0 {
        let other = random.pick(seeds);
        let (here, there) = (random.below(data.len() + 1), random.below(other.len() + 1));
        data.truncate(here);
        data.extend(&other[there..]);
    }
    change(random, &mut data);
    data
}

/// Instructions of pickles, with what follows them.
const INSTRUCTIONS: [&[u8]; 58] = [
    b"(",
    b"0",
    b"1",
    b"2",
    b"N",
    b"\x88",
    b"\x89",
    b"]",
    b")",
    b"}",
    b"\x8f",
    b"a",
    b"e",
    b"s",
    b"u",
    b"t",
    b"l",
    b"d",
    b"\x85",
    b"\x86",
    b"\x87",
    b"\x90",
    b"\x91",
    b"\x94",
    b"R",
    b"b",
    b"Q",
    b"\x81",
    b"\x92",
    b"\x93",
    b"o",
    b"K\x05",
    b"M\x05\0",
    b"J\xff\xff\xff\xff",
    b"I3\n",
    b"I01\n",
    b"L9L\n",
    b"\x8a\x01\xff",
    b"F1e9\n",
    b"G?\xf0\0\0\0\0\0\0",
    b"Vmodel\n",
    b"Vema\n",
    b"Vparam_groups\n",
    b"Vstate\n",
    b"S'a'\n",
    b"U\x01a",
    b"X\x01\0\0\0a",
    b"\x8c\x02ab",
    b"C\x02ab",
    b"h\0",
    b"q\0",
    b"g0\n",
    b"p0\n",
    b"j\0\0\0\0",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ccollections\nOrderedDict\n",
    b"c_codecs\nencode\n",
    b"inumpy.core.multiarray\nscalar\n",
];

/// A pickle with instructions changed, put in and taken out, in any of its wrappings.
pub(crate) fn pickle(random: &mut Random, seeds: &[Vec<u8>]) -> Vec<u8> {
    if random.below(4) == 0 {
        return bytes(random, seeds);
    }
    let mut data = random.pick(&pickles());
    for _ in 0..=random.below(6) {
        let at = random.below(data.len());
        match random.below(4) {
            0 => change(random, &mut data),
            // A part of another pickle.
            1 => {
                let other = random.pick(&pickles());
                let from = random.below(other.len());
                let part = other[from..(from + random.below(60)).min(other.len())].to_vec();
                data.splice(at..at, part);
            }
            2 => {
                // Seldom as often as takes memory.
                let most = if random.below(4000) == 0 { 23 } else { 8 };
                let repeated = random.pick(&INSTRUCTIONS).repeat(1 << random.below(most));
                data.splice(at..at, repeated);
            }
            _ => {
                let instruction = random.pick(&INSTRUCTIONS).to_vec();
                data.splice(at..at, instruction);
            }
        }
        if data.is_empty() {
            data.push(b'.');
        }
    }
    match random.below(3) {
        0 => legacy(&data),
        1 => data,
        _ => {
            let method = random.pick(&[CompressionMethod::Stored, CompressionMethod::Deflated]);
            let numbers = vec![0; random.pick(&[0, 23, 24, 4096])];
            zipped(&[("a/data.pkl", data), ("a/data/0", numbers), ("a/byteorder", b"little".to_vec())], method)
        }
    }
}

/// The head of an array with other types, orders and shapes.
pub(crate) fn array(random: &mut Random, seeds: &[Vec<u8>]) -> Vec<u8> {
    if random.below(4) == 0 {
        return bytes(random, seeds);
    }
    let descr = random.pick(&[
        "'|u1'",
        "'<i8'",
        "'>i4'",
        "'<u2'",
        "'|b1'",
        "'<f4'",
        "'>f8'",
        "'<f2'",
        "'|O'",
        "'<U3'",
        "'|V8'",
        "'<f16'",
        "'<c8'",
        "''",
        "'<M8[ns]'",
        "[('a', '<f4')]",
        "'=u99999999999999999999'",
        "'|u0'",
        "3",
    ]);
    // Half of them with as many values as they say.
    let fits = random.below(2) == 0;
    let lengths: Vec<u64> = (0..random.below(6))
        .map(|_| {
            let large = if fits { 5 } else { random.pick(&NUMBERS) };
            random.pick(&[0, 1, 2, 3, 4, 6, 24, large])
        })
        .collect();
    let size: u64 = descr.trim_matches(|c: char| !c.is_ascii_digit()).parse().unwrap_or(1);
    let values = if fits {
        lengths.iter().product::<u64>().saturating_mul(size).min(1 << 16) as usize
    } else {
        random.pick(&[0, 1, 23, 24, 48, 96, 4096, 1 << 16])
    };
    let lengths: Vec<String> = lengths.iter().map(u64::to_string).collect();
    let fortran = random.pick(&["True", "False", "1"]);
    let mut head =
        format!("{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': ({},), }}", lengths.join(", ")).into_bytes();
    if random.below(4) == 0 {
        change(random, &mut head);
    }
    let values = vec![random.next() as u8; values];
    let mut npy = npy(&String::from_utf8_lossy(&head), &values);
    if random.below(4) == 0 {
        change(random, &mut npy);
    }
    match random.below(3) {
        0 => npy,
        1 => zipped(&[("arr_0.npy", npy)], CompressionMethod::Stored),
        _ => zipped(&[("arr_0.npy", npy.clone()), ("b.npy", npy)], CompressionMethod::Deflated),
    }
}

/// A header of safetensors with other types, shapes and places, and its length right again.
pub(crate) fn tensors(random: &mut Random, seeds: &[Vec<u8>]) -> Vec<u8> {
    if random.below(3) == 0 {
        return bytes(random, seeds);
    }
    let mut entries = Vec::new();
    let mut end = 0;
    // Half of them as they have to be; seldom as many as take memory.
    let fits = random.below(2) == 0;
    let most = if random.below(4000) == 0 { 20_000 } else { 6 };
    for i in 0..random.below(most) {
        if fits {
            let (dtype, size) = random.pick(&[("F32", 4), ("F16", 2), ("BF16", 2), ("F64", 8), ("U8", 1)]);
            let length = random.below(5);
            let name = random.pick(&["a", "model.a", "ema.a", "module.b", "_orig_mod"]);
            let offsets = format!("[{end},{}]", end + size * length);
            entries.push(format!(
                "\"{name}{i}\":{{\"dtype\":\"{dtype}\",\"shape\":[{length}],\"data_offsets\":{offsets}}}"
            ));
            end += size * length;
            continue;
        }
        let dtype = random.pick(&["F32", "F16", "BF16", "F64", "I64", "BOOL", "F8_E4M3", "F4", "U8", "X"]);
        let large = random.pick(&NUMBERS) as usize;
        let shape: Vec<String> = (0..random.below(4)).map(|_| random.pick(&[0, 1, 2, 3, large]).to_string()).collect();
        let begin = random.pick(&[end, end, end, 0, large]);
        let size = random.pick(&[4, 8, 24, large]);
        end = begin.wrapping_add(size);
        let name = random.pick(&["a", "model.a", "ema.a", "module.b", "_orig_mod", "\\u0000"]);
        entries.push(format!(
            "\"{name}{i}\":{{\"dtype\":\"{dtype}\",\"shape\":[{}],\"data_offsets\":[{begin},{end}]}}",
            shape.join(",")
        ));
    }
    if random.below(2) == 0 {
        let text = random.pick(&[
            "\"crc32\":\"{}\"",
            "\"crc32\":\"[\",\"crc32.header\":\"00000000\"",
            "\"crc32.header\":\"0",
            "\"config\":\"a\"",
            "\"a\":1",
        ]);
        entries.insert(0, format!("\"__metadata__\":{{{text}}}"));
    }
    let mut header = format!("{{{}}}", entries.join(",")).into_bytes();
    if random.below(8) == 0 {
        header.extend(b"[".repeat(1 << random.below(12)));
    }
    if random.below(3) == 0 {
        change(random, &mut header);
    }
    let other = random.pick(&[0, 4, 24]);
    headed(&String::from_utf8_lossy(&header), &vec![0; if random.below(4) > 0 { end & 0xf_ffff } else { other }])
}

/// Fields of pages: numbers of pages, places in them, lengths, flags.
pub(crate) fn lmdb(random: &mut Random, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut data = random.pick(seeds);
    for _ in 0..=random.below(3) {
        let page = random.below(data.len() / 512) * 512;
        let (at, size) = match random.below(4) {
            // Of the description of the database.
            0 => (page + random.pick(&[10, 40, 88, 92, 94, 120, 128, 144]), random.pick(&[2, 4, 8])),
            // Flags, the end of the nodes' places, and these.
            1 => (page + random.pick(&[10, 12, 14, 16, 18, 20]), 2),
            _ => (page + random.below(256) * 2, random.pick(&[2, 4, 8])),
        };
        let number = if random.below(2) == 0 { random.below(600) as u64 } else { random.pick(&NUMBERS) };
        let end = data.len().min(at + size);
        data[at.min(end)..end].copy_from_slice(&number.to_le_bytes()[..end - at.min(end)]);
    }
    if random.below(4) == 0 {
        change(random, &mut data);
    }
    data
}

/// Headers of tar with their checksums right again, and archives of other kinds.
pub(crate) fn tar(random: &mut Random, seeds: &[Vec<u8>]) -> Vec<u8> {
    if random.below(2) == 0 {
        return bytes(random, seeds);
    }
    let mut data = seeds[1].clone();
    for _ in 0..=random.below(3) {
        let header = random.below(data.len() / 512) * 512;
        let at = header + random.pick(&[0, 1, 100, 124, 125, 130, 135, 156, 157, 257, 263, 345, 483]);
        data[at] = random.pick(&[0, b'0', b'1', b'2', b'5', b'7', b'L', b'x', b'g', b'S', b'/', b'.', 0x80, 0xff]);
        if random.below(4) == 0 {
            let digits = random.pick(&NUMBERS).to_be_bytes();
            data[header + 128..header + 136].copy_from_slice(&digits);
        }
        data[header + 148..header + 156].fill(b' ');
        let sum: u32 = data[header..header + 512].iter().map(|&byte| u32::from(byte)).sum();
        data[header + 148..header + 155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    }
    if random.below(4) == 0 { gzipped(&data) } else { data }
}
