use super::*;
use crate::beta::NoiseSchedule;
use crate::respace::Spacing;
use crate::reverse::Reading;
use crate::sampler::Churn;
use crate::step::DdimStep;
use crate::variance::Variance;

const DDIM: Rule = Rule::Ddim { eta: 0.0 };
const HEUN: Rule = Rule::Heun(Churn { amount: 0.0, least: 0.0, most: 0.0 });

fn spaced(spacing: Spacing, count: usize) -> Schedule {
    Schedule::spaced(NoiseSchedule::Linear, 1000, spacing, count).unwrap()
}

fn read(text: &str) -> Corrections {
    text.parse().unwrap()
}

fn complaint(text: &str) -> String {
    text.parse::<Corrections>().unwrap_err().to_string()
}

fn assert_close(actual: f64, expected: f64) {
    assert!((actual - expected).abs() <= 1e-9 * expected.abs().max(1.0), "{actual} is not {expected}");
}

/// One of each form, and of each mode of DCW.
const WRITTEN: [&str; 14] = [
    "es:1.017",
    "es-linear:0.0025,1",
    "es-euler:1.0006",
    "es-auto:runs/a, b/bias.json",
    "time-shift:30,300",
    "time-shift-released:5,550",
    "shift:-2.5",
    "dcw:low,0.052",
    "dcw:high,-0.01,constant",
    "dcw:double,0.052,0.01",
    "dcw:double,0.052,0.01,constant",
    "dcw:pixel,0.005",
    "ideal-ip:0.1",
    "noise:1.007",
];

#[test]
fn every_form_reads_and_writes_back() {
    for form in CORRECTION_FORMS {
        let name = |text: &'static str| text.split(':').next();
        assert!(WRITTEN.iter().any(|text| name(text) == name(form)), "{form}");
    }
    for text in WRITTEN {
        let corrections = read(text);
        assert_eq!(corrections.to_string(), text);
        assert_eq!(serde_json::to_value(&corrections).unwrap(), text);
        assert_eq!(serde_json::from_value::<Corrections>(text.into()).unwrap(), corrections);
    }
    let all = "es:1.02; time-shift:30,300; shift:1; dcw:low,0.1; ideal-ip:0.1; noise:1.01";
    assert_eq!(read(all).to_string(), all);
    assert_eq!(read(" ;es: 1.02 ;;time-shift:30 , 300;shift:1;dcw:low,0.1;ideal-ip:0.1;noise:1.01;"), read(all));
    for nothing in ["", " ", ";"] {
        assert!(read(nothing) == Corrections::default() && read(nothing).to_string().is_empty());
    }
    // A slope of 0 is none.
    assert_eq!(read("es-linear:0,1.02"), read("es:1.02"));
}

#[test]
fn what_cannot_be_read_is_named_with_what_can_be_written() {
    assert_eq!(
        complaint("es:1; eps:1"),
        "there is no correction \"eps:1\": write one of es:λ, es-linear:k,b, es-euler:λ, es-auto:bias.json, \
         time-shift:window,cutoff, time-shift-released:window,cutoff, shift:Δ, \
         dcw:low|high|double|pixel,c[,c_high][,constant], ideal-ip:γ, noise:S"
    );
    assert!(complaint("1.02").starts_with("there is no correction"));
    for (text, form) in [
        ("es", "es:λ"),
        ("es:", "es:λ"),
        ("es:fast", "es:λ"),
        ("es:1,2", "es:λ"),
        ("es:NaN", "es:λ"),
        ("es-euler:inf", "es-euler:λ"),
        ("es-linear:1", "es-linear:k,b"),
        ("es-auto", "es-auto:bias.json"),
        ("es-auto: ", "es-auto:bias.json"),
        ("time-shift:30", "time-shift:window,cutoff"),
        ("time-shift-released:30,300,1", "time-shift-released:window,cutoff"),
        ("shift:", "shift:Δ"),
        ("dcw:middle,1", "dcw:low|high|double|pixel,c[,c_high][,constant]"),
        ("dcw:low", "dcw:low|high|double|pixel,c[,c_high][,constant]"),
        ("dcw:low,constant", "dcw:low|high|double|pixel,c[,c_high][,constant]"),
        ("dcw:double,1", "dcw:low|high|double|pixel,c[,c_high][,constant]"),
        ("dcw:pixel,1,2", "dcw:low|high|double|pixel,c[,c_high][,constant]"),
        ("ideal-ip:a", "ideal-ip:γ"),
        ("noise:1,", "noise:S"),
    ] {
        assert_eq!(complaint(text), format!("cannot read the correction {:?}: write it as {form}", text.trim()));
    }
    for (text, reason) in [
        ("es:0", "λ must be above 0"),
        ("es-euler:-1", "λ must be above 0"),
        ("es-linear:1,0", "λ must be above 0"),
        ("time-shift:-1,300", "the window is a number of timesteps"),
        ("time-shift:30,-1", "the cutoff is a timestep"),
        ("ideal-ip:-0.1", "γ must be 0 or more"),
        ("noise:-1", "S must be 0 or more"),
    ] {
        assert_eq!(complaint(text), format!("the correction {text:?} does not work: {reason}"));
    }
}

#[test]
fn two_of_a_kind_are_refused() {
    for (first, second) in [
        ("es:1.01", "es:1.02"),
        ("es:1.01", "es-linear:0.1,1"),
        ("es-linear:0.1,1", "es-euler:1.01"),
        ("es-euler:1.01", "es-auto:bias.json"),
        ("time-shift:30,300", "time-shift-released:5,550"),
        ("shift:1", "shift:2"),
        ("dcw:low,0.1", "dcw:high,0.1"),
        ("ideal-ip:0.1", "ideal-ip:0.2"),
        ("noise:1", "noise:1.1"),
    ] {
        assert_eq!(
            complaint(&format!("{first};{second}")),
            format!("the corrections {first:?} and {second:?} are of one kind: use one of them")
        );
    }
}

#[test]
fn corrections_that_do_not_apply_are_refused_with_the_reason() {
    let s = spaced(Spacing::Uniform, 10);
    let checked = |text: &str, rule, prediction, size| read(text).check(rule, prediction, &s, size);
    let epsilon = |text: &str, rule| checked(text, rule, Prediction::Epsilon, 8);
    let says = |result: Result<(), CorrectionError>, part: &str| {
        let error = result.unwrap_err();
        assert!(matches!(error, CorrectionError::NotHere { .. }));
        assert!(error.to_string().contains("does not apply here") && error.to_string().contains(part), "{error}");
    };
    says(epsilon("es-euler:1.01", DDIM), "use es");
    assert_eq!(epsilon("es-euler:1.01", HEUN), Ok(()));

    says(epsilon("time-shift-released:5,100", HEUN), "use the ddim sampler, or time-shift");
    assert_eq!(epsilon("time-shift-released:5,100", DDIM), Ok(()));
    // Steps begin at 999, 888, 777 and so on, and the first is left alone.
    says(epsilon("time-shift:5,888", DDIM), "no step after the first begins above the cutoff");
    assert_eq!(epsilon("time-shift:5,887", DDIM), Ok(()));
    // What moves is the end.
    says(epsilon("time-shift-released:5,777", DDIM), "no step after the first ends above the cutoff");
    assert_eq!(epsilon("time-shift-released:5,776", DDIM), Ok(()));
    for text in ["time-shift:5,0", "time-shift-released:5,0"] {
        let one = spaced(Spacing::Uniform, 1);
        says(read(text).check(DDIM, Prediction::Epsilon, &one, 8), "no step after the first");
    }

    for text in ["dcw:low,0.1", "dcw:high,0.1", "dcw:double,0.1,0.1"] {
        says(checked(text, DDIM, Prediction::Epsilon, 7), "use dcw:pixel");
    }
    assert_eq!(checked("dcw:pixel,0.1", DDIM, Prediction::Epsilon, 7), Ok(()));

    says(checked("ideal-ip:0.1", DDIM, Prediction::PreviousX, 8), "another noise level");
    assert_eq!(checked("ideal-ip:0.1", DDIM, Prediction::XStart, 8), Ok(()));

    let churned = Rule::Heun(Churn { amount: 1.0, ..Churn::default() });
    for rule in [DDIM, Rule::UniPc, HEUN, Rule::DpmSolver { stochastic: false }] {
        says(epsilon("noise:1.1", rule), "adds no noise");
    }
    for rule in [Rule::Ddpm, Rule::Ddim { eta: 0.1 }, churned, Rule::DpmSolver { stochastic: true }] {
        assert_eq!(epsilon("noise:1.1", rule), Ok(()));
    }

    assert!(epsilon("es-linear:-0.2,1.9", DDIM).is_ok());
    let error = epsilon("shift:1; es-linear:-0.2,1.8", DDIM).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the correction \"es-linear:-0.2,1.8\" does not work: λ is not above 0 at the first step"
    );
}

#[test]
fn neutral_settings_change_nothing() {
    let s = spaced(Spacing::Karras, 10);
    let churned = Rule::Heun(Churn { amount: 1.0, ..Churn::default() });
    for text in [
        "",
        "es:1",
        "es-linear:0,1",
        "es-euler:1",
        "shift:0",
        "time-shift:0,100",
        "time-shift-released:0,100",
        "dcw:low,0",
        "dcw:high,0,constant",
        "dcw:double,0,0",
        "dcw:pixel,0",
        "ideal-ip:0",
        "noise:1",
    ] {
        let corrections = read(text);
        for stage in [DDIM, HEUN, churned].iter().flat_map(|rule| rule.stages(&s, 9)) {
            let call = corrections.call(&s, &stage);
            assert!(call.is_plain(), "{text}");
            assert_eq!((call.time, call.level), (stage.level.time, stage.level), "{text}");
            assert_eq!(corrections.time_shift(&s, &stage, 0.3), 0.0, "{text}");
            assert_eq!(corrections.shifted_end(&s, &stage, 0.3), None, "{text}");
            assert_eq!(corrections.dcw(stage.level), None, "{text}");
        }
        assert_eq!((corrections.noise(), corrections.levels_beyond(&s)), (1.0, 0), "{text}");
    }
}

#[test]
fn epsilon_scaling_divides_epsilon_at_every_call() {
    let s = spaced(Spacing::Uniform, 10);
    for (text, scale) in [
        ("es:1.25", (|_, _| 1.25) as fn(usize, bool) -> f64),
        ("es-linear:0.5,1", |index, _| 0.5 * index as f64 + 1.0),
        ("es-euler:1.25", |_, second| if second { 1.0 } else { 1.25 }),
    ] {
        for stage in HEUN.stages(&s, 9) {
            let call = read(text).call(&s, &stage);
            assert_eq!(call.eps, scale(stage.index, stage.called_at != stage.index));
            assert_eq!((call.input, call.time, call.level), (1.0, stage.level.time, stage.level));
        }
    }
    // Whatever the network predicts, its ε is what is divided.
    let (i, x, x_start) = (4, 0.8, 0.3);
    let level = s.level(i);
    let eps = (x - level.alpha() * x_start) / level.sigma();
    for &prediction in Prediction::ALL {
        let reading = Reading::<f64>::new(&s, prediction, Variance::FixedSmall, i);
        let corrected = reading.corrected(x, reading.target(x_start, x, eps), &reading, 1.0, 1.25);
        assert_close(reading.x_start(x, corrected, None), (x - level.sigma() * eps / 1.25) / level.alpha());
        assert_close(reading.implied_eps(x, corrected), eps / 1.25);
    }
}

#[test]
fn the_scale_that_was_found_replaces_a_files_name() {
    let corrections = read("noise:1.1; es-auto:bias.json; shift:1");
    assert_eq!(corrections.auto(), Some("bias.json"));
    let found = corrections.with_scale(1.02);
    assert_eq!((found.to_string().as_str(), found.auto()), ("noise:1.1; shift:1; es:1.02", None));
}

#[test]
fn a_shift_moves_the_networks_time_up_to_the_ends() {
    let s = spaced(Spacing::Uniform, 10);
    let times =
        |text: &str| -> Vec<f64> { DDIM.stages(&s, 9).iter().map(|stage| read(text).call(&s, stage).time).collect() };
    let plain = times("");
    assert_eq!(times("shift:2.5"), plain.iter().map(|t| (t + 2.5).min(999.0)).collect::<Vec<_>>());
    assert_eq!(times("shift:-2.5"), plain.iter().map(|t| (t - 2.5).max(0.0)).collect::<Vec<_>>());
}

#[test]
fn the_nearest_time_is_looked_for_within_half_a_window() {
    let s = spaced(Spacing::Uniform, 10);
    let variance = |time: f64| 1.0 - s.level_at(time).alpha_bar;
    let nearest = |time, window, of: f64| nearest(&s, time, window, variance(of));
    // Inside, up to both edges and no further; odd windows are cut to even ones.
    for (of, expected) in [(503.0, 503.0), (503.4, 503.0), (505.0, 505.0), (506.0, 505.0), (900.0, 505.0)] {
        assert_eq!((nearest(500.0, 10.0, of), nearest(500.0, 11.9, of)), (expected, expected), "{of}");
    }
    for (of, expected) in [(495.0, 495.0), (494.0, 495.0), (0.0, 495.0)] {
        assert_eq!(nearest(500.0, 10.0, of), expected, "{of}");
    }
    // Whole timesteps away, wherever the time lies.
    assert_eq!(nearest(500.5, 10.0, 503.4), 503.5);
    // The ends of the process are ends of the window too.
    assert_eq!((nearest(2.0, 10.0, 0.0), nearest(997.0, 10.0, 999.0), nearest(2.5, 10.0, 0.0)), (0.0, 999.0, 0.5));
    assert_eq!((nearest(500.0, 1.0, 900.0), nearest(500.0, 0.0, 0.0)), (500.0, 500.0));
}

#[test]
fn time_shift_calls_the_network_where_the_variance_fits_above_the_cutoff_after_the_first_step() {
    let s = spaced(Spacing::Uniform, 10);
    let corrections = read("time-shift:10,333");
    assert!(corrections.wants_variance() && !read("shift:1").wants_variance());
    for stage in HEUN.stages(&s, 9) {
        let time = stage.level.time;
        let shift = corrections.time_shift(&s, &stage, 1.0 - s.level_at((time + 3.0).min(999.0)).alpha_bar);
        assert_eq!(shift, if stage.step > 0 && time > 333.0 { 3.0 } else { 0.0 }, "{time}");
        assert_eq!(corrections.shifted_end(&s, &stage, 0.3), None);
    }
}

#[test]
fn the_released_time_shift_moves_the_end_of_a_step_instead() {
    let s = spaced(Spacing::Uniform, 10);
    let corrections = read("time-shift-released:10,333");
    assert!(corrections.wants_variance());
    for stage in DDIM.stages(&s, 9) {
        assert_eq!(corrections.time_shift(&s, &stage, 0.3), 0.0);
        let Some(next) = stage.index.checked_sub(1) else {
            assert_eq!(corrections.shifted_end(&s, &stage, 0.3), None);
            continue;
        };
        let time = s.times[next];
        let wanted = s.level_at(time + 3.0).alpha_bar;
        let end = corrections.shifted_end(&s, &stage, 1.0 - wanted);
        assert_eq!(end, (stage.step > 0 && time > 333.0).then_some(wanted), "{time}");
        assert_eq!(corrections.shifted_end(&s, &stage, 1.0 - s.level_at(time).alpha_bar), None);
        // The step that results ends on that level.
        let step = DdimStep::between(stage.level.alpha_bar, wanted, 0.0);
        assert_close(step.x_start.powi(2), wanted);
        assert_close(step.eps.powi(2), 1.0 - wanted);
    }
}

#[test]
fn dcw_weights_follow_the_noise_level() {
    let level = Level { time: 300.0, alpha_bar: 0.64 };
    for (text, [low, high], pixels) in [
        ("dcw:low,0.05", [0.05 * 0.6, 0.0], false),
        ("dcw:high,0.01", [0.0, 0.01 * 0.4], false),
        ("dcw:double,0.05,-0.01", [0.05 * 0.6, -0.01 * 0.4], false),
        ("dcw:pixel,0.05", [0.05 * 0.6; 2], true),
        ("dcw:low,0.05,constant", [0.05, 0.0], false),
        ("dcw:high,0.01,constant", [0.0, 0.01], false),
        ("dcw:double,0.05,0.01,constant", [0.05, 0.01], false),
        ("dcw:pixel,0.05,constant", [0.05; 2], true),
    ] {
        let [found_low, found_high] = read(text).dcw(level).unwrap();
        assert_close(found_low, low);
        assert_close(found_high, high);
        assert_eq!(read(text).dcw_on_pixels(), pixels, "{text}");
    }
}

#[test]
fn ideal_input_perturbation_is_the_minimiser_of_the_perturbed_problem_on_gaussian_data() {
    let s = Schedule::spaced(NoiseSchedule::Cosine, 1000, Spacing::Uniform, 12).unwrap();
    for gamma in [0.05, 0.1, 0.3, 1.0] {
        let corrections = read(&format!("ideal-ip:{gamma}"));
        let mut inside = 0;
        for stage in DDIM.stages(&s, 11) {
            let call = corrections.call(&s, &stage);
            // The level that the network is told by its time; beyond the last timestep it cannot be told.
            let told = s.level_at(call.time);
            if told.time == 999.0 {
                continue;
            }
            inside += 1;
            for (mean, variance) in [(0.0, 1.0), (0.4, 0.25), (-0.7, 0.01)] {
                let (alpha, sigma) = (stage.level.alpha(), stage.level.sigma());
                for y in [-1.3, 0.2, 2.0] {
                    // y = α x_0 + σ(ε + γξ): Cov(ε, y)/Var(y) times how far y is from its mean.
                    let of_y = stage.level.alpha_bar * variance + sigma.powi(2) * (1.0 + gamma * gamma);
                    let ideal = sigma / of_y * (y - alpha * mean);
                    // The exact network of unperturbed training.
                    let seen = y * call.input;
                    let of_seen = told.alpha_bar * variance + told.sigma().powi(2);
                    let eps = told.sigma() / of_seen * (seen - told.alpha() * mean);
                    let x_start = (seen - told.sigma() * eps) / told.alpha();
                    for prediction in [Prediction::Epsilon, Prediction::XStart] {
                        let own = Reading::<f64>::new(&s, prediction, Variance::FixedSmall, stage.index);
                        let at = own.moved(call.level);
                        let answer = at.target(x_start, seen, eps);
                        let corrected = own.corrected(y, answer, &at, call.input, call.eps);
                        let found = own.implied_eps(y, corrected);
                        assert!((found - ideal).abs() < 1e-6, "{prediction}, γ = {gamma}: {found} is not {ideal}");
                    }
                }
            }
        }
        assert!(inside > 8, "{inside}");
    }
}

#[test]
fn corrections_of_a_call_act_together() {
    let s = spaced(Spacing::Uniform, 10);
    let stage = DDIM.stages(&s, 9)[5];
    let call = |text: &str| read(text).call(&s, &stage);
    let (ideal, both) = (call("ideal-ip:0.2"), call("es:1.5; shift:2; ideal-ip:0.2"));
    assert_close(ideal.eps, 1.04_f64.sqrt());
    assert_close(both.eps, 1.5 * ideal.eps);
    assert_close(both.time, ideal.time + 2.0);
    assert_eq!((both.input, both.level), (ideal.input, ideal.level));
    assert_eq!(call("ideal-ip:0.2; shift:2; es:1.5"), both);
}

#[test]
fn levels_whose_time_lies_beyond_the_last_timestep_are_counted() {
    for noise_schedule in [NoiseSchedule::Linear, NoiseSchedule::Cosine] {
        let s = Schedule::spaced(noise_schedule, 1000, Spacing::LogSnr, 40).unwrap();
        let mut last = 0;
        for gamma in [0.3, 2.0, 10.0] {
            let corrections = read(&format!("ideal-ip:{gamma}"));
            // λ falls by log s, and nothing lies beyond the smallest.
            let least = s.level(39).lambda();
            let expected = (0..40).filter(|&i| s.level(i).lambda() - noise_scale(gamma).ln() < least).count();
            assert_eq!(corrections.levels_beyond(&s), expected);
            assert!(expected > last, "{expected}");
            last = expected;
            for stage in DDIM.stages(&s, 39) {
                assert_eq!(corrections.call(&s, &stage).time == 999.0, stage.index >= 40 - expected);
            }
        }
        assert_eq!(read("es:1.1").levels_beyond(&s), 0);
    }
}
