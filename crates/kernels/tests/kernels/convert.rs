//! Between the types.

use crate::support::*;
use ddpm_kernels::convert::{narrow, round, to_f32, widen};
use ddpm_kernels::{bf16, f16};

/// Longer than a task's share, and no multiple of it.
const LONG: usize = 3 * 16_384 + 77;

fn widened(from: &[f16]) -> Vec<f32> {
    written(from.len(), |to: &mut [f32]| widen(from, to))
}

fn narrowed(from: &[f32]) -> Vec<f16> {
    let mut to = vec![f16::from_bits(0x1234); from.len()];
    narrow(from, &mut to);
    to
}

#[test]
fn every_f16_comes_back() {
    let all: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).collect();
    let wide = widened(&all);
    for ((f16, wide), back) in all.iter().zip(&wide).zip(narrowed(&wide)) {
        if f16.is_nan() {
            assert!(wide.is_nan() && back.is_nan());
        } else {
            assert_eq!((wide.to_bits(), back.to_bits()), (f16.to_f32_const().to_bits(), f16.to_bits()));
        }
    }
}

#[test]
fn f16_is_rounded_once() {
    let values: Vec<f32> = Random(3).values(LONG).iter().map(|v| v * v * v * 7e4).collect();
    for (value, found) in values.iter().zip(narrowed(&values)) {
        assert_eq!(found.to_bits(), f16::from_f32_const(*value).to_bits(), "{value}");
    }
    // Ties go to the even one; what is too large becomes infinity, not the largest value.
    let found = narrowed(&[1.0 + 2f32.powi(-11), 1.0 + 3.0 * 2f32.powi(-11), 65_519.0, 65_520.0, -9e4, f32::NAN]);
    let expected = [1.0, 1.0 + 2f32.powi(-9), 65_504.0, f32::INFINITY, f32::NEG_INFINITY];
    assert_eq!(widened(&found[..5]), expected);
    assert!(found[5].is_nan());
}

#[test]
fn every_bf16_comes_back() {
    let all: Vec<bf16> = (0..=u16::MAX).map(bf16::from_bits).collect();
    let wide = written(all.len(), |to: &mut [f32]| to_f32(&all, to));
    let mut back = vec![bf16::from_f32(1.0); all.len()];
    round(&wide, &mut back);
    for ((bf16, wide), back) in all.iter().zip(wide).zip(back) {
        if bf16.is_nan() {
            assert!(wide.is_nan() && back.is_nan());
        } else {
            assert_eq!((wide.to_bits() >> 16, back.to_bits()), (u32::from(bf16.to_bits()), bf16.to_bits()));
            assert_eq!(wide.to_bits() & 0xffff, 0);
        }
    }
}

#[test]
fn bf16_is_rounded_to_even_and_nan_stays_nan() {
    let mut values: Vec<f32> = Random(5).values(LONG).iter().map(|v| v * v * v * 1e30).collect();
    let ulp = 2f32.powi(-7);
    let special = [1.0 + 0.5 * ulp, 1.0 + 1.5 * ulp, f32::MAX, f32::INFINITY, 1e-40, -0.0];
    values[..6].copy_from_slice(&special);
    let found = written(LONG, |to: &mut [bf16]| round(&values, to));
    let expected: Vec<f32> = values.iter().map(|&v| bf16::from_f32(v).to_f32()).collect();
    assert_eq!(bits(&found), bits(&expected));
    assert_eq!(found[..4], [1.0, 1.0 + 2.0 * ulp, f32::INFINITY, f32::INFINITY]);
    let nan = [f32::NAN, f32::from_bits(0x7f80_0001), f32::from_bits(0xffff_ffff)];
    assert!(written(3, |to: &mut [bf16]| round(&nan, to)).iter().all(|v| v.is_nan()));
}

#[test]
fn f32_stays_what_it_is() {
    let values = Random(7).values(LONG);
    assert_eq!(written(LONG, |to: &mut [f32]| round(&values, to)), values);
    assert_eq!(written(LONG, |to: &mut [f32]| to_f32(&values, to)), values);
    assert!(written(0, |to: &mut [f32]| widen(&[], to)).is_empty());
}

#[test]
#[should_panic(expected = "lengths")]
fn other_lengths_are_refused() {
    widen(&[f16::from_bits(0); 2], &mut [0.0; 3]);
}
