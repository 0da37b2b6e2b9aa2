//! The progress bar. Where standard error is no terminal, a line a minute stands in its place.

use super::words::{BETWEEN, step_line};
use ddpm_ip::{Event, words};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Progress over which the speed shown is taken.
const WINDOW: Duration = Duration::from_secs(10);

/// When the first line is due where there is no bar, and how far apart the others are.
const FIRST_LINE: Duration = Duration::from_secs(10);
const BETWEEN_LINES: Duration = Duration::from_mins(1);

/// When lines are due.
struct Pace(Instant);

impl Pace {
    fn new(begin: Instant) -> Self {
        Self(begin + FIRST_LINE)
    }

    /// Whether one is due, and then the next one is a while away.
    fn is_due(&mut self, now: Instant) -> bool {
        let due = now >= self.0;
        if due {
            self.0 = now + BETWEEN_LINES;
        }
        due
    }

    /// Something else was said.
    fn wait(&mut self, now: Instant) {
        self.0 = now + BETWEEN_LINES;
    }
}

/// Progress of a training or sampling call.
pub(crate) struct Bar {
    drawn: ProgressBar,
    quiet: bool,
    pace: Pace,
    /// Images done at past moments, within the window.
    recent: VecDeque<(Instant, f64)>,
    /// How training ends, and its batch size.
    last_step: Option<u64>,
    time_limit: Option<Duration>,
    batch_size: usize,
    /// Seconds of training that are left, where that is known.
    left: Option<f64>,
    /// Reverse steps per image and images in all.
    reverse_steps: usize,
    total: usize,
    /// Whose features are being made.
    measured: String,
    /// What goes in steps of its own, since when, and from which step on.
    stepped: Option<(String, Instant, usize)>,
}

impl Bar {
    pub(crate) fn new(quiet: bool) -> Self {
        let target = if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let drawn = ProgressBar::with_draw_target(None, target);
        Self {
            drawn,
            quiet,
            pace: Pace::new(Instant::now()),
            recent: VecDeque::new(),
            last_step: None,
            time_limit: None,
            batch_size: 0,
            left: None,
            reverse_steps: 1,
            total: 0,
            measured: String::new(),
            stepped: None,
        }
    }

    /// Whether anybody sees it.
    pub(crate) fn is_shown(&self) -> bool {
        !self.drawn.is_hidden()
    }

    /// Prints a line above the bar, or where there is none.
    pub(crate) fn above(&self, text: &str) {
        if self.is_shown() {
            self.drawn.println(text);
        } else {
            crate::output::complain(text);
        }
    }

    pub(crate) fn receive(&mut self, event: &Event) {
        match event {
            Event::Started { last_step, time_limit, batch_size, step, .. } => {
                (self.last_step, self.time_limit, self.batch_size) = (*last_step, *time_limit, *batch_size);
                self.begin(*step as f64 * *batch_size as f64);
            }
            Event::Step { step, elapsed, loss } => {
                let rate = self.rate(*step as f64 * self.batch_size as f64);
                let by_steps = self.last_step.map(|last| *step as f64 / last as f64);
                let by_time = self.time_limit.map(|limit| elapsed.as_secs_f64() / limit.as_secs_f64());
                let done = by_steps.into_iter().chain(by_time).fold(0.0, f64::max);
                let left_steps = self.last_step.map(|last| (last - step) as f64 * self.batch_size as f64 / rate);
                let left_time = self.time_limit.map(|limit| limit.saturating_sub(*elapsed).as_secs_f64());
                self.left = left_steps.into_iter().chain(left_time).reduce(f64::min);
                let of = self.last_step.map_or(String::new(), |last| format!("/{last}"));
                self.show(done, self.left, &format!("step {step}{of}{BETWEEN}loss {}", words::number(*loss)), rate);
            }
            Event::Sampling { done, total, steps } => {
                (self.total, self.reverse_steps) = (*total, *steps);
                self.begin(*done as f64);
            }
            Event::SampleStep { done, step, batch } => {
                let images = *done as f64 + *batch as f64 * *step as f64 / self.reverse_steps as f64;
                self.sampled(
                    images,
                    &format!("{done}/{} images{BETWEEN}step {step}/{}", self.total, self.reverse_steps),
                );
            }
            Event::Measured { what, done, total } => {
                let left = self.left(what, *done, *total);
                self.say(format!("{what}, {done}/{total} steps{left}"));
                self.drawn.tick();
            }
            Event::Drawing { what, done, total } => {
                let left = self.left(what, *done, *total);
                self.say(format!("drawing {what}, {done}/{total} steps{left}"));
                self.drawn.tick();
            }
            Event::Bounded { done, total, bits_per_dim: None } => {
                self.total = *total;
                self.begin(*done as f64);
            }
            Event::Bounded { done, total, bits_per_dim: Some(bits) } => {
                self.sampled(*done as f64, &format!("{done}/{total} images{BETWEEN}{bits:.4} bits/dim"));
            }
            Event::Prepared { done: 0, total } => {
                self.total = total.unwrap_or(0);
                self.begin(0.0);
            }
            Event::Prepared { done, total: Some(total) } => {
                self.sampled(*done as f64, &format!("{done}/{total} images"));
            }
            Event::Prepared { done, total: None } => {
                let rate = self.rate(*done as f64);
                self.show(0.0, None, &format!("{done} images"), rate);
            }
            Event::Measuring { what, done, total } => {
                if self.measured != *what {
                    self.measured.clone_from(what);
                    self.total = *total;
                    self.begin(*done as f64);
                }
                self.sampled(*done as f64, &format!("{done}/{total} images of {what}"));
            }
            Event::Reading { what, done, total } => {
                if self.measured != *what {
                    self.measured.clone_from(what);
                    self.begin(0.0);
                }
                self.drawn.set_position((1000 * done / total.max(&1)) as u64);
                let left = self.left(what, *done, *total);
                self.say(format!("{what}, part {done} of {total}{left}"));
            }
            Event::Fetching { done, total } => {
                if self.recent.is_empty() {
                    self.begin(*done as f64);
                }
                let megabytes = |bytes: u64| format!("{:.1}", bytes as f64 / 1e6);
                let of = total.map_or(String::new(), |total| format!(" of {}", megabytes(total)));
                self.drawn.set_position((1000.0 * *done as f64 / total.unwrap_or(u64::MAX) as f64) as u64);
                self.say(format!("{}{of} MB", megabytes(*done)));
            }
            Event::Sampled { done } => self.sampled(*done as f64, &format!("{done}/{} images", self.total)),
            _ => {}
        }
    }

    /// A line of the logs, for where there is no bar.
    pub(crate) fn logged(&mut self, line: &[(String, f64)]) -> String {
        self.pace.wait(Instant::now());
        let columns = self.last_step.map_or(1, |last| last.to_string().len());
        step_line(line, columns) + &self.left.map_or(String::new(), eta)
    }

    pub(crate) fn finish(&self) {
        self.drawn.finish_and_clear();
    }

    /// The time left of what goes in steps, as text.
    fn left(&mut self, what: &str, done: usize, total: usize) -> String {
        let now = Instant::now();
        let goes_on = |(name, _, first): &(String, Instant, usize)| name == what && *first <= done;
        let (_, since, first) = match self.stepped.take().filter(goes_on) {
            Some(stepped) => self.stepped.insert(stepped),
            None => self.stepped.insert((what.into(), now, done)),
        };
        eta((now - *since).as_secs_f64() / (done - *first) as f64 * total.saturating_sub(done) as f64)
    }

    fn begin(&mut self, images: f64) {
        let style = ProgressStyle::with_template("{bar:30} {msg}").unwrap_or_else(|_| ProgressStyle::default_bar());
        self.drawn.set_style(style);
        self.drawn.set_length(1000);
        self.recent = [(Instant::now(), images)].into();
    }

    fn sampled(&mut self, images: f64, what: &str) {
        let rate = self.rate(images);
        let total = self.total as f64;
        self.show(images / total, Some((total - images) / rate), what, rate);
    }

    /// Images per second, lately.
    fn rate(&mut self, images: f64) -> f64 {
        let now = Instant::now();
        self.recent.push_back((now, images));
        while self.recent.len() > 2 && now - self.recent[1].0 > WINDOW {
            self.recent.pop_front();
        }
        let (since, before) = self.recent[0];
        (images - before) / (now - since).as_secs_f64().max(1e-6)
    }

    fn show(&mut self, done: f64, left_secs: Option<f64>, what: &str, rate: f64) {
        let eta = left_secs.map_or(String::new(), eta);
        self.drawn.set_position((done * 1000.0) as u64);
        self.say(format!("{what}{BETWEEN}{}{eta}", words::rate(rate)));
    }

    /// Shows what is being done: beside the bar, or now and then as a line.
    fn say(&mut self, text: String) {
        if !self.quiet && self.drawn.is_hidden() && self.pace.is_due(Instant::now()) {
            crate::output::complain(&text);
        }
        self.drawn.set_message(text);
    }
}

/// Time that is left, as text; none where it is not known.
fn eta(secs: f64) -> String {
    if secs.is_finite() && secs < 1e9 { format!("{BETWEEN}ETA {}", words::time(secs.max(0.0))) } else { String::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_gets_a_line_after_ten_seconds_and_then_one_a_minute() {
        let begin = Instant::now();
        let mut pace = Pace::new(begin);
        let due: Vec<u64> = (0..200).filter(|&s| pace.is_due(begin + Duration::from_secs(s))).collect();
        assert_eq!(due, [10, 70, 130, 190]);
    }

    #[test]
    fn the_speed_of_what_went_before_does_not_count() {
        let mut bar = Bar::new(true);
        for done in [0, 200] {
            bar.receive(&Event::Sampling { done, total: 10_000, steps: 100 });
            bar.receive(&Event::SampleStep { done: done + 9000, step: 0, batch: 100 });
        }
        bar.receive(&Event::Sampling { done: 300, total: 10_000, steps: 100 });
        bar.receive(&Event::SampleStep { done: 300, step: 31, batch: 100 });
        let said = bar.drawn.message();
        assert!(said.starts_with("300/10000 images · step 31/100 · ") && !said.contains("· -"), "{said}");
    }
}
