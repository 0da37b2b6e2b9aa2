//! OpenCV's `resize` of 8-bit images with INTER_LINEAR, bit for bit.
//!
//! Pixels have their centres at halves, nothing is smoothed before it is made smaller, and weights have 11 fraction
//! bits. Between the passes 4 bits are dropped, and 16 more of each product in the second.

use crate::data::Pixels;

/// Fraction bits of the weights.
const PRECISION: u32 = 11;

/// For an output position: the input positions that it lies between, and their weights.
struct Between {
    at: [usize; 2],
    weights: [i32; 2],
}

/// What lies outside the image is like its edge. OpenCV computes positions in doubles, rounds them to floats, and the
/// weights to the nearest, halves to even.
fn positions(from: usize, to: usize) -> Vec<Between> {
    let scale = 1.0 / (to as f64 / from as f64);
    let inside = |at: f32| (at.max(0.0) as usize).min(from - 1);
    let fixed = |weight: f32| (weight * (1u32 << PRECISION) as f32).round_ties_even() as i32;
    let between = |i: usize| {
        let position = ((i as f64 + 0.5) * scale - 0.5) as f32;
        let (first, fraction) = (position.floor(), position - position.floor());
        Between { at: [inside(first), inside(first + 1.0)], weights: [fixed(1.0 - fraction), fixed(fraction)] }
    };
    (0..to).map(between).collect()
}

/// The image at another size, whatever becomes of its proportions.
pub(super) fn squash(image: Pixels, width: usize, height: usize) -> Pixels {
    if (image.width, image.height) == (width, height) {
        return image;
    }
    let c = image.channels;
    let columns = positions(image.width, width);
    let narrow = |y: usize| -> Vec<i32> {
        let row = &image.data[y * image.width * c..][..image.width * c];
        let value = |b: &Between, channel: usize| -> i32 {
            (0..2).map(|k| i32::from(row[b.at[k] * c + channel]) * b.weights[k]).sum::<i32>() >> 4
        };
        columns.iter().flat_map(|b| (0..c).map(move |channel| value(b, channel))).collect()
    };
    let mut data = Vec::with_capacity(width * height * c);
    for b in positions(image.height, height) {
        let (upper, lower) = (narrow(b.at[0]), narrow(b.at[1]));
        data.extend(upper.iter().zip(&lower).map(|(u, l)| {
            let sum = ((b.weights[0] * u) >> 16) + ((b.weights[1] * l) >> 16);
            ((sum + 2) >> 2).clamp(0, 255) as u8
        }));
    }
    Pixels { width, height, channels: c, data }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn formula(width: usize, height: usize, channels: usize) -> Pixels {
        let value = |i: usize| {
            let (x, y, c) = (i / channels % width, i / channels / width, i % channels);
            ((x * x * 7 + y * 13 + c * 29 + x * y * 3) % 256) as u8
        };
        Pixels { width, height, channels, data: (0..width * height * channels).map(value).collect() }
    }

    /// FNV-1a.
    fn hash(data: &[u8]) -> u64 {
        data.iter().fold(0xcbf2_9ce4_8422_2325, |h, &v| (h ^ u64::from(v)).wrapping_mul(0x0100_0000_01b3))
    }

    // The expected values are those of OpenCV 4.10 and 5.0, which are equal.

    #[test]
    fn small_images_are_opencvs() {
        assert_eq!(squash(formula(5, 4, 1), 3, 3).data, [4, 31, 99, 23, 57, 132, 42, 82, 163]);
        let larger = [0, 1, 3, 6, 7, 8, 9, 13, 16, 17, 18, 19, 23, 28, 29, 26, 27, 32, 37, 39];
        assert_eq!(squash(formula(2, 3, 1), 5, 4).data, larger);
    }

    #[test]
    fn large_images_are_opencvs() {
        for (width, height, channels, side, expected) in [
            (178, 218, 3, 64, 0x7293_2f96_7c5f_7535),
            (178, 218, 3, 32, 0x74a5_477c_a33b_cef1),
            (64, 48, 1, 100, 0xab0f_6007_288b_ce3f),
            (1, 9, 1, 4, 0xd358_4180_12e8_8a85),
            (333, 17, 3, 64, 0xcaff_f954_3e9f_e5e0),
        ] {
            assert_eq!(hash(&squash(formula(width, height, channels), side, side).data), expected, "{width}x{height}");
        }
    }

    #[test]
    fn an_image_of_the_size_stays_as_it_is() {
        assert_eq!(squash(formula(7, 7, 3), 7, 7), formula(7, 7, 3));
    }
}
