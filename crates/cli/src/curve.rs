//! A small curve in text.

use ddpm_ip::words::number;

/// Characters of the picture; each has 2 by 4 dots.
const COLUMNS: usize = 56;
const ROWS: usize = 5;

/// Dots of Unicode's Braille patterns, by column and row within a character.
const DOTS: [[u8; 4]; 2] = [[0x01, 0x02, 0x04, 0x40], [0x08, 0x10, 0x20, 0x80]];

/// A curve over steps `(step, value)`, in lines, with its largest and smallest value and its first and last step beside it;
/// logarithmic, as losses fall. Nothing of fewer than three values above zero, or of such that are all the same.
pub(crate) fn curve(name: &str, points: &[(f64, f64)]) -> Option<Vec<String>> {
    let points: Vec<(f64, f64)> = points.iter().copied().filter(|(_, v)| v.is_finite() && *v > 0.0).collect();
    let (first, last) = (points.first()?.0, points.last()?.0);
    let (wide, high) = (2 * COLUMNS, 4 * ROWS);
    // The mean of what falls into each column of dots.
    let mut means = vec![(0.0, 0u32); wide];
    for &(step, value) in &points {
        let at = ((step - first) / (last - first).max(1.0) * wide as f64) as usize;
        let (sum, count) = &mut means[at.min(wide - 1)];
        (*sum, *count) = (*sum + value, *count + 1);
    }
    let values: Vec<Option<f64>> = means.iter().map(|&(sum, n)| (n > 0).then(|| sum / f64::from(n))).collect();
    let (least, most) =
        values.iter().flatten().fold((f64::INFINITY, 0.0f64), |(least, most), &v| (least.min(v), most.max(v)));
    if points.len() < 3 || most <= least {
        return None;
    }
    let row = |v: f64| ((most / v).ln() / (most / least).ln() * (high - 1) as f64).round() as usize;
    let mut cells = [[0u8; COLUMNS]; ROWS];
    let mut mark = |x: usize, y: usize| cells[y / 4][x / 2] |= DOTS[x % 2][y % 4];
    // Columns without a value of their own lie on the line between their neighbours'.
    let known: Vec<(usize, usize)> = values.iter().enumerate().filter_map(|(x, v)| Some((x, row((*v)?)))).collect();
    for pair in known.windows(2) {
        let [(x0, y0), (x1, y1)] = [pair[0], pair[1]];
        let at = |x: usize| y0 as f64 + (y1 as f64 - y0 as f64) * (x - x0) as f64 / (x1 - x0) as f64;
        for x in x0..x1 {
            let (from, to) = (at(x).round() as usize, at(x + 1).round() as usize);
            (from.min(to)..=from.max(to)).for_each(|y| mark(x, y));
        }
    }
    if let Some(&(x, y)) = known.last() {
        mark(x, y);
    }
    let labels = [number(most), number(least)];
    let margin = labels.iter().map(String::len).max().unwrap_or(0);
    let mut lines = vec![name.to_string()];
    for (i, cells) in cells.iter().enumerate() {
        let label = [(0, &labels[0]), (ROWS - 1, &labels[1])].into_iter().find(|(row, _)| *row == i);
        let dots: String = cells.iter().map(|&dots| char::from_u32(0x2800 + u32::from(dots)).unwrap_or(' ')).collect();
        lines.push(format!("{:>margin$} {}", label.map_or("", |(_, label)| label), dots.trim_end_matches('\u{2800}')));
    }
    let last = format!("step {last}");
    lines.push(format!("{:margin$} {first}{last:>width$}", "", width = COLUMNS - first.to_string().len()));
    Some(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_that_halves_steadily_falls_in_a_straight_line() {
        let points: Vec<(f64, f64)> =
            (0..200).map(|i| (f64::from(i), 0.9 * 0.5f64.powf(f64::from(i) / 50.0))).collect();
        let lines = curve("loss", &points).unwrap();
        assert_eq!(lines.len(), 2 + ROWS);
        assert!(lines[1].starts_with(" 0.8938 ⠉⠓⠒⠒⠦⠤⠤⣄") && lines[ROWS].ends_with("⠉⠉⠉⠓⠒⠒⠦⠤⠤⣄⣀"), "{lines:#?}");
        assert!(lines[ROWS].starts_with("0.05743 "), "{lines:#?}");
        assert!(lines[ROWS + 1].trim_start().starts_with("0 ") && lines[ROWS + 1].ends_with("step 199"));
        assert!(lines[1..=ROWS].iter().all(|line| line.chars().count() <= 8 + COLUMNS));
    }

    #[test]
    fn too_few_values_are_no_curve() {
        for points in [&[][..], &[(1.0, 0.5)], &[(1.0, 0.5), (2.0, 0.4)], &[(1.0, 0.5), (2.0, 0.5), (3.0, 0.5)]] {
            assert_eq!(curve("loss", points), None);
        }
        let holes = [(1.0, 0.5), (2.0, f64::NAN), (3.0, 0.0), (4.0, 0.4), (100.0, 0.3)];
        assert!(curve("loss", &holes).unwrap().iter().all(|line| !line.contains("NaN")));
    }
}
