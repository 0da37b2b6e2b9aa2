//! Sinusoidal embedding of time (Vaswani et al. 2017, arXiv 1706.03762, section 3.5, in the reference's order).

/// The embedding of (possibly fractional) times `t` `[N]` as `[N, channels]`: cosines, then sines, of t times falling
/// frequencies 10000^(−i/half); a zero ends an odd number of channels. In f32 up to the sine, as the reference.
pub fn timestep_embedding(t: &[f32], channels: usize) -> Vec<f32> {
    let half = channels / 2;
    let freqs: Vec<f32> =
        (0..half).map(|i| f64::from(-(10_000f64.ln() as f32) * i as f32 / half as f32).exp() as f32).collect();
    let mut out = Vec::with_capacity(t.len() * channels);
    for &t in t {
        out.extend(freqs.iter().map(|f| f64::from(t * f).cos() as f32));
        out.extend(freqs.iter().map(|f| f64::from(t * f).sin() as f32));
        out.extend((channels % 2 == 1).then_some(0.0));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cosines_then_sines() {
        let e = timestep_embedding(&[0.0, 2.0], 5);
        assert_eq!(e[..5], [1.0, 1.0, 0.0, 0.0, 0.0]);
        assert_eq!(e[5..7], [2f32.cos(), 0.02f32.cos()]);
        assert_eq!(e[7..10], [2f32.sin(), 0.02f32.sin(), 0.0]);
    }
}
