//! Sinusoidal embedding of time (Vaswani et al. 2017, arXiv 1706.03762, section 3.5, in the reference's order).

use super::Family;

/// The embedding of (possibly fractional) times `t` `[N]` as `[N, channels]`: cosines and sines of t times falling
/// frequencies; a zero ends an odd number of channels. In f32 up to the sine, as the references.
///
/// ADM: cosines, then sines, of frequencies 10000^(−i/half). DDIM: sines, then cosines, of 10000^(−i/(half − 1)).
pub fn timestep_embedding(t: &[f32], channels: usize, family: Family) -> Vec<f32> {
    let half = channels / 2;
    let log = 10_000f64.ln();
    let exponent = |i: usize| match family {
        Family::Adm => -(log as f32) * i as f32 / half as f32,
        Family::Ddim => i as f32 * -((log / (half as f64 - 1.0)) as f32),
    };
    let freqs: Vec<f32> = (0..half).map(|i| f64::from(exponent(i)).exp() as f32).collect();
    let mut out = Vec::with_capacity(t.len() * channels);
    for &t in t {
        let cosines = freqs.iter().map(|f| f64::from(t * f).cos() as f32);
        let sines = freqs.iter().map(|f| f64::from(t * f).sin() as f32);
        match family {
            Family::Adm => out.extend(cosines.chain(sines)),
            Family::Ddim => out.extend(sines.chain(cosines)),
        }
        out.extend((channels % 2 == 1).then_some(0.0));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sines_first_in_ddim_with_other_frequencies() {
        let e = timestep_embedding(&[2.0], 7, Family::Ddim);
        let expected = [2f32.sin(), 0.02f32.sin(), 0.0002f32.sin(), 2f32.cos(), 0.02f32.cos(), 0.0002f32.cos(), 0.0];
        assert!(e.iter().zip(expected).all(|(e, expected)| (e - expected).abs() < 1e-6), "{e:?}");
    }

    #[test]
    fn cosines_then_sines() {
        let e = timestep_embedding(&[0.0, 2.0], 5, Family::Adm);
        assert_eq!(e[..5], [1.0, 1.0, 0.0, 0.0, 0.0]);
        assert_eq!(e[5..7], [2f32.cos(), 0.02f32.cos()]);
        assert_eq!(e[7..10], [2f32.sin(), 0.02f32.sin(), 0.0]);
    }
}
