//! Pages about runs: written, live, and of comparisons.

use super::support::{Place, names};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

/// The smallest network as a plan's settings.
const TINY: &str = "[settings]\nmodel.num_channels = 32\nmodel.channel_mult = [1]\nmodel.attention_resolutions = []\n\
                    model.class_cond = false\ntrain.batch_size = 4\ntrain.grid_images = 0\ndiffusion.diffusion_steps = 10\n\
                    diffusion.noise_schedule = 'cosine'\nsample.timestep_respacing = ''\n";

#[test]
fn a_page_is_written_where_the_run_is() {
    let place = Place::new();
    place.train(&["--steps", "3", "--log-interval", "1", "--grid-images", "4"]).exits(0);
    assert_eq!(place.run(&["report", "run"]).exits(0).out().trim(), "wrote run/report.html");
    let page = place.read("run/report.html");
    for part in ["finished", "loss by quarter of t", "Machines and versions", "data:image/png;base64,", "log as CSV"] {
        assert!(page.contains(part), "{part}");
    }
    place.run(&["report", "run", "run"]).complains(2, &["named twice"]);
    place.run(&["report", "run", "--out", "."]).complains(2, &["is a folder"]);
    place.run(&["report", "."]).complains(1, &["no run directory"]);
    std::fs::write(place.path("run/bias.json"), "{").unwrap();
    place.run(&["report", "run"]).exits(0);
    assert!(place.read("run/report.html").contains("is not a bias.json"));
}

/// A program that serves pages; it ends with this.
struct Server(Child, u16);

impl Server {
    fn new(place: &Place, port: &str) -> (Self, String) {
        let mut child = Command::new(assert_cmd::cargo::cargo_bin("ddpm-ip"))
            .args(["watch", ".", "--port", port])
            .current_dir(place.path(""))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut said = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut said).unwrap();
        let port = said.split("127.0.0.1:").nth(1).and_then(|rest| rest.split(' ').next()).unwrap().parse().unwrap();
        (Self(child, port), said)
    }

    /// The status and body of an answer.
    fn ask(&self, request: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.1)).unwrap();
        write!(stream, "{request}\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_string())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn runs_are_watched() {
    let place = Place::new();
    place.run(&["watch", "runs"]).complains(2, &["runs is no folder"]);
    place.train(&["--steps", "2", "--log-interval", "1"]).exits(0);
    let (server, said) = Server::new(&place, "0");
    assert!(said.starts_with("1 runs at http://127.0.0.1:"), "{said}");
    let (status, page) = server.ask("GET / HTTP/1.1\r\nHost: localhost");
    assert!(status == 200 && page.contains("<h1>run</h1>") && page.contains("finished"), "{page}");
    assert_eq!(server.ask("GET /../config.toml HTTP/1.1\r\nHost: localhost").0, 404);
    assert_eq!(server.ask("GET / HTTP/1.1\r\nHost: elsewhere.example").0, 403);
    assert_eq!(server.ask("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0").0, 405);
    // The port is taken: the next one is.
    let (other, said) = Server::new(&place, &server.1.to_string());
    assert!(other.1 > server.1 && other.ask("GET /content HTTP/1.1\r\nHost: [::1]").0 == 200, "{said}");
}

#[test]
fn a_comparison_trains_draws_measures_and_goes_on() {
    let place = Place::new();
    let plan = |seeds: &str| {
        let text = format!(
            "preset = 'digits'\nseeds = {seeds}\nreal = 'digits'\n{TINY}train.steps = 2\n[[variant]]\nname = 'base'\n\
             settings.perturbation.gamma = 0\n[[variant]]\nname = 'ip'\n[[sample]]\nsampler = 'ddim'\nsteps = [2, 5]\nimages = 8\n"
        );
        std::fs::write(place.path("plan.toml"), text).unwrap();
        place.run(&["compare", "plan.toml"])
    };
    let ran = plan("[0]").exits(0);
    assert!(ran.err().contains("1 of 6: training base, seed 0") && ran.out().trim() == "wrote plan/index.html");
    let lines = || place.read("plan/results.jsonl");
    // Two variants in two numbers of steps, and real images.
    assert_eq!(lines().lines().count(), 5);
    assert_eq!(names(&place.path("plan/runs")), ["base-0", "ip-0"]);
    assert!(place.path("plan/runs/ip-0/progress.csv").exists());
    let page = place.read("plan/index.html");
    for part in ["base, ip", "Real images", "ddim, 2 steps", "perturbation.gamma", "data:image/png;base64,"] {
        assert!(page.contains(part), "{part}");
    }
    // Nothing is done twice, and what a plan has more is added.
    let before = lines();
    let again = plan("[0]").exits(0).err();
    assert!(!again.contains("training") && !again.contains("drawing"), "{again}");
    assert_eq!(lines(), before);
    plan("[0, 1]").exits(0);
    assert!(lines().starts_with(&before) && lines().lines().count() == 9);
    // Two seeds have an interval.
    assert!(place.read("plan/index.html").contains(" ± "));
    // A run that is there has the seed that it was trained with.
    let mine =
        "[[variant]]\nname = 'mine'\nrun = 'plan/runs/ip-1'\n[[sample]]\nsampler = 'ddim'\nsteps = 2\nimages = 8\n";
    std::fs::write(place.path("mine.toml"), mine).unwrap();
    let said = place.run(&["compare", "mine.toml"]).exits(0).err();
    assert!(said.contains("of mine, seed 1,") && place.read("mine/results.jsonl").contains("\"seed\":1,"), "{said}");

    // A plan that was edited does not show what was trained before under its name.
    let edited = place.read("plan.toml").replace("gamma = 0\n", "gamma = 0.9\n");
    std::fs::write(place.path("plan.toml"), edited).unwrap();
    let said = ["variant base", "plan/runs/base-0", "perturbation.gamma is 0.9 now", "another name"];
    place.run(&["compare", "plan.toml"]).complains(2, &said);
    place.run(&["compare", "plan.toml", "mine.toml"]).complains(2, &["plan.toml is a file", "one plan"]);

    let runs = ["compare", "plan/runs/base-0", "plan/runs/ip-0", "--out", "two"];
    place.run(&runs).complains(2, &["variant base-0", "at most 10"]);
    std::fs::write(place.path("wrong.toml"), "variants = []").unwrap();
    place.run(&["compare", "wrong.toml"]).complains(1, &["wrong.toml", "did you mean `variant`?"]);
    let missing = format!(
        "preset = 'digits'\n{TINY}train.steps = 1\n[[variant]]\nname = 'a'\n[[variant]]\nname = 'b'\nrun = 'nothing'\n"
    );
    std::fs::write(place.path("wrong.toml"), missing).unwrap();
    place.run(&["compare", "wrong.toml"]).complains(1, &["nothing", "no checkpoint"]);
    let other = format!(
        "preset = 'digits'\n{TINY}train.steps = 1\n[[variant]]\nname = 'a'\n[[variant]]\nname = 'b'\nsettings.data.fit = 'pad'\n"
    );
    std::fs::write(place.path("wrong.toml"), other).unwrap();
    place.run(&["compare", "wrong.toml"]).complains(2, &["a and b cannot be compared", "fit differs"]);
    assert!(!place.path("wrong").exists());
}
