//! Evaluation during training.

use super::support::*;
use crate::support::{cpu, with};
use ddpm_ip::checkpoint::{self, Store};
use ddpm_ip::config::Config;
use ddpm_ip::evaluate::EvaluationHook;
use ddpm_ip::train::{self, Hook};
use ddpm_ip::{Event, Outcome, sample};
use std::path::Path;
use std::sync::atomic::AtomicBool;

/// The tiny run with classes, evaluated every two of five steps.
fn config(settings: &[(&str, &str)]) -> Config {
    let evaluated = [
        ("class_cond", "true"),
        ("steps", "5"),
        ("num_samples", "30"),
        ("sample.batch_size", "16"),
        ("sample.seed", "3"),
        ("evaluation.interval", "2"),
        ("evaluation.images", "30"),
    ];
    with(&[&evaluated, settings].concat())
}

/// Trains with evaluation; what was said.
fn trained(place: &Place, config: &Config, run: &Path) -> Vec<Event> {
    let (stop, mut events) = (AtomicBool::new(false), Vec::new());
    let hook = EvaluationHook::new(config, run, &place.settings(), cpu(), &stop, &mut |_| {}).unwrap();
    let hooks = hook.into_iter().map(|hook| Box::new(hook) as Box<dyn Hook>).collect();
    train::train(config, run, cpu(), hooks, &stop, &mut |event| events.push(event)).unwrap();
    events
}

/// Steps and distances of a run's evaluations.
fn lines(run: &Path) -> Vec<(u64, f64)> {
    let text = std::fs::read_to_string(run.join("evaluations.jsonl")).unwrap();
    let line = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        (line["step"].as_u64().unwrap(), line["fid"].as_f64().unwrap())
    };
    text.lines().map(line).collect()
}

#[test]
fn the_distance_is_logged_and_the_best_checkpoint_kept() {
    let place = Place::new();
    let run = place.path("run");
    let events = trained(&place, &config(&[]), &run);
    let found = lines(&run);
    assert_eq!(found.iter().map(|l| l.0).collect::<Vec<_>>(), [2, 4, 5]);
    let logged: Vec<f64> = events
        .iter()
        .filter_map(
            |e| if let Event::Log(line) = e { line.iter().find(|(k, _)| k == "frechet_distance") } else { None },
        )
        .map(|(_, v)| *v)
        .collect();
    assert_eq!(logged, found.iter().map(|l| l.1).collect::<Vec<_>>());
    let best = found.iter().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
    let kept = run.join("checkpoints/best");
    assert_eq!(checkpoint::progress(&kept).unwrap().step, best.0);
    assert_eq!(Store::new(&run).newest().unwrap().unwrap().0, 5, "the best is not the newest");

    // What `sample` draws from it is as far away.
    let mut settings = config(&[]);
    settings.model.num_classes = 10;
    let job = sample::Job {
        checkpoint: kept,
        config: settings,
        out: Some(run.join("samples_best.npz")),
        grid: None,
        order: sample::Order::default(),
        overwrite: true,
    };
    sample::run(&job, cpu(), &AtomicBool::new(false), &mut |_| {}).unwrap();
    let report = compare("digits", &run.display().to_string(), place.settings());
    assert_eq!(report.fid, best.1);
    // That evaluation is the run's, too.
    let text = std::fs::read_to_string(run.join("evaluations.jsonl")).unwrap();
    assert!(text.lines().count() == 4 && text.lines().last().unwrap().contains("samples_best.npz"));
}

#[test]
fn evaluation_does_not_change_training() {
    let place = Place::new();
    let (with, without) = (place.path("with"), place.path("without"));
    trained(&place, &config(&[]), &with);
    trained(&place, &config(&[("evaluation.interval", "0")]), &without);
    let parameters = |run: &Path| std::fs::read(run.join("checkpoints/step_000005/model.safetensors")).unwrap();
    let numbers = |run: &Path| parameters(run).split_off(parameters(run).len() - 4 * 50_000);
    assert_eq!(numbers(&with), numbers(&without));
    assert!(!without.join("evaluations.jsonl").exists());
}

#[test]
fn a_resumed_run_keeps_the_best_of_before() {
    let place = Place::new();
    let run = place.path("run");
    trained(&place, &config(&[]), &run);
    // A distance that cannot be reached again: the best stays.
    let best = checkpoint::progress(&run.join("checkpoints/best")).unwrap().step;
    let change = |line: &str| match line.split_once("\"fid\":") {
        Some((head, _)) if line.contains(&format!("\"step\":{best},")) => format!("{head}\"fid\":1e-6}}\n"),
        _ => format!("{line}\n"),
    };
    let low = std::fs::read_to_string(run.join("evaluations.jsonl")).unwrap();
    std::fs::write(run.join("evaluations.jsonl"), low.lines().map(change).collect::<String>()).unwrap();
    let before = std::fs::read(run.join("checkpoints/best/model.safetensors")).unwrap();
    let events = trained(&place, &config(&[("steps", "7")]), &run);
    assert!(!events.iter().any(|e| matches!(e, Event::Best { .. })));
    assert_eq!(std::fs::read(run.join("checkpoints/best/model.safetensors")).unwrap(), before);
    assert_eq!(lines(&run).last().unwrap().0, 7);
}

/// Asks to stop when the last evaluation begins.
struct Stopped<'a>(EvaluationHook<'a>, &'a AtomicBool);
impl Hook for Stopped<'_> {
    fn after_step(
        &mut self,
        trainer: &train::Trainer,
        report: &train::StepReport,
        next: train::Next,
        emit: &mut ddpm_ip::Emit,
    ) -> Result<(), ddpm_ip::Error> {
        self.1.store(next == train::Next::Finish, std::sync::atomic::Ordering::Relaxed);
        self.0.after_step(trainer, report, next, emit)
    }
}

/// Ctrl-C in the last evaluation: the run is complete, and the same call makes up for it.
#[test]
fn an_evaluation_that_was_interrupted_is_made_up_for() {
    let (place, config) = (Place::new(), config(&[("evaluation.interval", "5")]));
    let run = place.path("run");
    let stop = AtomicBool::new(false);
    let hook = EvaluationHook::new(&config, &run, &place.settings(), cpu(), &stop, &mut |_| {}).unwrap().unwrap();
    let hooks: Vec<Box<dyn Hook>> = vec![Box::new(Stopped(hook, &stop))];
    let outcome = train::train(&config, &run, cpu(), hooks, &stop, &mut |_| {}).unwrap();
    assert_eq!((outcome, run.join("evaluations.jsonl").exists()), (Outcome::Interrupted, false));
    trained(&place, &config, &run);
    assert_eq!(lines(&run).iter().map(|line| line.0).collect::<Vec<_>>(), [5]);
    // And once it is there, not again.
    trained(&place, &config, &run);
    assert_eq!(lines(&run).len(), 1);
}

/// A line that was cut off swallows neither the next nor the run.
#[test]
fn a_torn_line_stays_alone() {
    let (place, config) = (Place::new(), config(&[("evaluation.interval", "5")]));
    let run = place.path("run");
    std::fs::create_dir(&run).unwrap();
    std::fs::write(run.join("evaluations.jsonl"), "{\"step\":").unwrap();
    trained(&place, &config, &run);
    let text = std::fs::read_to_string(run.join("evaluations.jsonl")).unwrap();
    let second = text.lines().nth(1).unwrap();
    assert!(text.lines().count() == 2 && serde_json::from_str::<serde_json::Value>(second).is_ok(), "{text}");
}

#[test]
fn only_networks_that_draw_whole_images_are_evaluated() {
    let text = config(&[]);
    let mut classifier = text.clone();
    classifier.model.arch = ddpm_ip::config::Arch::Classifier;
    classifier.classifier.num_classes = 10;
    let error = classifier.validate().unwrap_err().to_string();
    assert!(error.contains("--evaluation-interval") || error.contains("classifier"), "{error}");
    let mut few = text;
    few.evaluation.images = 1;
    assert!(few.validate().unwrap_err().to_string().contains("evaluation.images = 1"));
}
