//! What people have reported of programs of this kind, and what happens here. Tests are named by what was reported.

use super::support::{cpu, remarks, with};
use ddpm_ip::{Event, Outcome, train};
use std::sync::atomic::{AtomicBool, Ordering};

#[test]
fn ctrl_c_in_the_last_grid_ends_as_if_it_were_there() {
    let folder = tempfile::tempdir().unwrap();
    let config = with(&[("grid_images", "4"), ("steps", "2")]);
    let (run, grid) = (folder.path().join("run"), folder.path().join("run/samples/step_000002.png"));
    let trained = |interrupt: bool| {
        let (stop, mut events) = (AtomicBool::new(false), Vec::new());
        let outcome = train::train(&config, &run, cpu(), vec![], &stop, &mut |event| {
            if interrupt && matches!(event, Event::Drawing { done: 3, .. }) {
                stop.store(true, Ordering::Relaxed);
            }
            events.push(event);
        });
        (outcome.unwrap(), remarks(&events).join("\n"))
    };
    // In the grid after the last step, and again in that of the call that would draw it.
    for _ in 0..2 {
        let (outcome, said) = trained(true);
        assert_eq!(outcome, Outcome::Interrupted);
        assert!(said.contains("complete at step 2") && said.contains("repeat the command to draw it"), "{said}");
        assert!(!grid.exists());
    }
    let (outcome, said) = trained(false);
    assert!(outcome == Outcome::Finished && grid.exists(), "{said}");
}

#[test]
fn ctrl_c_in_the_last_step_ends_without_the_grid() {
    let folder = tempfile::tempdir().unwrap();
    let config = with(&[("grid_images", "4"), ("steps", "2")]);
    let stop = AtomicBool::new(false);
    let outcome = train::train(&config, folder.path(), cpu(), vec![], &stop, &mut |event| {
        if matches!(event, Event::Checkpoint { step: 2, .. }) {
            stop.store(true, Ordering::Relaxed);
        }
    });
    assert_eq!(outcome.unwrap(), Outcome::Interrupted);
}
