//! Numbers as people read them.

/// A number in four digits, or all before its point, without a power of ten where none is needed.
pub fn number(v: f64) -> String {
    if v == 0.0 || !v.is_finite() {
        return v.to_string();
    }
    let magnitude = v.abs().log10().floor() as i32;
    match magnitude {
        ..-4 | 9.. => format!("{v:.3e}"),
        4.. => grouped(v),
        _ => format!("{v:.*}", (3 - magnitude).max(0) as usize),
    }
}

/// A whole number in groups of three digits: `5 404`.
pub fn grouped(v: f64) -> String {
    let digits = format!("{:.0}", v.abs());
    let mut text = String::from(if v < 0.0 { "-" } else { "" });
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

/// Images per second: `5 404 images/s`, `12.3 images/s`.
pub fn rate(images: f64) -> String {
    let images = match images {
        100.0.. => grouped(images),
        10.0.. => format!("{images:.1}"),
        _ => number(images),
    };
    format!("{images} images/s")
}

/// A time in its two largest units: `45 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`.
pub fn time(secs: f64) -> String {
    let secs = secs.round() as u64;
    let [days, hours, minutes] = [secs / 86_400, secs / 3_600 % 24, secs / 60 % 60];
    let (large, small) = match [days, hours, minutes] {
        [0, 0, 0] => return format!("{secs} s"),
        [0, 0, _] => ((minutes, "min"), (secs % 60, "s")),
        [0, ..] => ((hours, "h"), (minutes, "min")),
        _ => ((days, "d"), (hours, "h")),
    };
    let all = format!("{} {}", large.0, large.1);
    // Of ten or more of the larger unit the smaller one says nothing.
    if small.0 == 0 || large.0 >= 10 { all } else { format!("{all} {} {}", small.0, small.1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_four_digits_and_no_power_of_ten_where_none_is_needed() {
        let of = [0.14731, 1.0, 53.186, 5404.3, 12345.6, 2.5e-5, 3e12, -0.5, 0.0, f64::NAN];
        let expected = ["0.1473", "1.000", "53.19", "5404", "12 346", "2.500e-5", "3.000e12", "-0.5000", "0", "NaN"];
        assert_eq!(of.map(number), expected);
        assert_eq!([1.0, 999.0, 1e3, 1_234_567.0, -5404.0].map(grouped), ["1", "999", "1 000", "1 234 567", "-5 404"]);
        assert_eq!([5404.3, 12.34, 0.5].map(rate), ["5 404 images/s", "12.3 images/s", "0.5000 images/s"]);
    }

    #[test]
    fn times_have_two_units_at_most() {
        let of = [0.4, 45.0, 60.0, 200.0, 659.0, 3_600.0, 7_500.0, 90_000.0, 1e6];
        let expected = ["0 s", "45 s", "1 min", "3 min 20 s", "10 min", "1 h", "2 h 5 min", "1 d 1 h", "11 d"];
        assert_eq!(of.map(time), expected);
    }
}
