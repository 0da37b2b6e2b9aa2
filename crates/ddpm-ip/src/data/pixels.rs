//! An 8-bit image in memory.

/// An 8-bit image `[H, W, C]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pixels {
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// Channels.
    pub channels: usize,
    /// The values, row by row, channels last.
    pub data: Vec<u8>,
}

impl Pixels {
    /// The image with another number of channels: grey is repeated, colour becomes Pillow's luma. None if there is no
    /// way.
    pub(crate) fn with_channels(self, channels: usize) -> Option<Self> {
        let data = match (self.channels, channels) {
            (from, to) if from == to => return Some(self),
            (1, 3) => self.data.iter().flat_map(|&v| [v; 3]).collect(),
            (3, 1) => self.data.chunks_exact(3).map(|p| luma([p[0], p[1], p[2]])).collect(),
            _ => return None,
        };
        Some(Self { channels, data, ..self })
    }

    /// The square of side `size` whose corner is at (x, y).
    pub(crate) fn cut(&self, x: usize, y: usize, size: usize) -> Self {
        let row = |y: usize| {
            let start = (y * self.width + x) * self.channels;
            &self.data[start..start + size * self.channels]
        };
        let data = (y..y + size).flat_map(row).copied().collect();
        Self { width: size, height: size, channels: self.channels, data }
    }

    /// The image centred on a black square of side `size`, which is at least as large.
    pub(crate) fn pad(&self, size: usize) -> Self {
        let (left, top) = ((size - self.width) / 2, (size - self.height) / 2);
        let mut data = vec![0; size * size * self.channels];
        let line = self.width * self.channels;
        for (y, row) in self.data.chunks_exact(line).enumerate() {
            let start = ((top + y) * size + left) * self.channels;
            data[start..start + line].copy_from_slice(row);
        }
        Self { width: size, height: size, channels: self.channels, data }
    }

    /// `[C, H, W]` in [-1, 1], mirrored left to right if asked.
    pub(crate) fn to_network(&self, mirrored: bool) -> Vec<f32> {
        let mut out = Vec::with_capacity(self.data.len());
        for c in 0..self.channels {
            for row in self.data.chunks_exact(self.width * self.channels) {
                let value = |x: usize| f32::from(row[x * self.channels + c]) / 127.5 - 1.0;
                if mirrored {
                    out.extend((0..self.width).rev().map(value));
                } else {
                    out.extend((0..self.width).map(value));
                }
            }
        }
        out
    }
}

/// Pillow's conversion to grey (ITU-R 601-2 in 16-bit fixed point).
fn luma([r, g, b]: [u8; 3]) -> u8 {
    ((u32::from(r) * 19_595 + u32::from(g) * 38_470 + u32::from(b) * 7_471 + 0x8000) >> 16) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> Pixels {
        Pixels { width: 2, height: 1, channels: 3, data: vec![0, 51, 102, 153, 204, 255] }
    }

    #[test]
    fn network_layout_is_planar_and_mirrors_within_rows() {
        let expected: Vec<f32> = [0.0, 153.0, 51.0, 204.0, 102.0, 255.0].iter().map(|v| v / 127.5 - 1.0).collect();
        assert_eq!(image().to_network(false), expected);
        let mirrored: Vec<f32> = [153.0, 0.0, 204.0, 51.0, 255.0, 102.0].iter().map(|v| v / 127.5 - 1.0).collect();
        assert_eq!(image().to_network(true), mirrored);
    }

    #[test]
    fn channels_convert_as_pillow_does() {
        let grey = image().with_channels(1).unwrap();
        assert_eq!(grey.data, [42, 195]);
        assert_eq!(grey.clone().with_channels(3).unwrap().data, [42, 42, 42, 195, 195, 195]);
        assert_eq!(grey.with_channels(2), None);
    }

    #[test]
    fn padding_centres_on_black_and_cutting_undoes_it() {
        let small = Pixels { width: 2, height: 2, channels: 1, data: vec![1, 2, 3, 4] };
        let padded = small.pad(4);
        assert_eq!(padded.data, [0, 0, 0, 0, 0, 1, 2, 0, 0, 3, 4, 0, 0, 0, 0, 0]);
        assert_eq!(padded.cut(1, 1, 2), small);
    }
}
