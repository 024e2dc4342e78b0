//! What `deploy/` says, tried with real processes: the arguments, the environment, the ports and
//! the probes of the manifests, with a directory for a bucket and loopback addresses for pods.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use cairn_common::config::{Fallback, Size};
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::sleep;

use crate::manifests::{Container, Manifests, Probe, Service, compose};

/// How often a condition is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// A bound on what should take well under a second; the machine may be busy.
const SOON: Duration = Duration::from_secs(30);

/// The bucket and the disks of a cluster.
struct Machine {
    folder: TempDir,
    client: Client,
}

/// A running pod.
struct Pod<'a> {
    container: &'a Container,
    ip: &'static str,
    client: Client,
    child: Child,
}

impl Machine {
    fn new() -> Self {
        let client = Client::builder().no_proxy().timeout(SOON).build();
        Self {
            folder: tempfile::tempdir().expect("a folder for the bucket"),
            client: client.expect("a client"),
        }
    }

    /// The environment that the container has in a pod of this address, but for what has to differ
    /// on this machine: the bucket, the address to listen on, and the root of the file system.
    fn env(&self, container: &Container, ip: &str) -> BTreeMap<String, String> {
        self.here(container.env(ip), &container.mounts(), ip)
    }

    fn here(
        &self,
        mut env: BTreeMap<String, String>,
        mounts: &[String],
        ip: &str,
    ) -> BTreeMap<String, String> {
        let folder = self.folder.path();
        env.insert("CAIRN_STORE".into(), format!("file://{}/bucket", folder.display()));
        for (name, value) in &mut env {
            if name.ends_with("LISTEN") {
                *value = value.replace("0.0.0.0:", &format!("{ip}:"));
            }
            if mounts.iter().any(|mount| value.starts_with(mount.as_str())) {
                *value = format!("{}/{ip}{value}", folder.display());
            }
        }
        env
    }

    fn start<'a>(&self, container: &'a Container, ip: &'static str) -> Pod<'a> {
        let child = command(&container.args(), &self.env(container, ip)).spawn();
        let child = child.expect("the program starts");
        Pod { container, ip, client: self.client.clone(), child }
    }
}

impl Pod<'_> {
    /// What the kubelet gets from this probe; `None` where nothing listens.
    async fn probe(&self, probe: &Probe) -> Option<StatusCode> {
        let url = format!("http://{}:{}{}", self.ip, probe.port, probe.path);
        self.client.get(url).send().await.ok().map(|reply| reply.status())
    }

    /// Waits until the probe answers 200, as long as the kubelet would but at least `SOON`.
    async fn passes(&mut self, kind: &str) {
        let probe = self.container.probe(kind);
        let mut left = SOON.max(Duration::from_secs(probe.patience_seconds));
        while self.probe(&probe).await != Some(StatusCode::OK) {
            let ended = self.child.try_wait().expect("the state of a child");
            let name = &self.container.deployment;
            assert_eq!(ended, None, "{name} ended before its {kind} passed");
            left = left.checked_sub(LOOK_EVERY).unwrap_or_else(|| panic!("{name} fails {kind}"));
            sleep(LOOK_EVERY).await;
        }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}:{}{path}", self.ip, self.container.port("http"))
    }

    /// SIGTERM; waits for the end as long as the kubelet would.
    async fn stop(mut self) -> ExitStatus {
        let pid = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw);
        let pid = pid.expect("a child has a pid");
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("a signal");
        let mut left = Duration::from_secs(self.container.grace_seconds());
        loop {
            if let Some(status) = self.child.try_wait().expect("the state of a child") {
                return status;
            }
            let name = &self.container.deployment;
            left = left.checked_sub(LOOK_EVERY).unwrap_or_else(|| panic!("{name} does not stop"));
            sleep(LOOK_EVERY).await;
        }
    }
}

impl Drop for Pod<'_> {
    fn drop(&mut self) {
        // Either may fail only because the process is gone already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A process of the compose file, which ends with this.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// The program of the image, from the folder in which this test was built.
pub(crate) fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("the path of this test");
    let folder = test.parent().and_then(Path::parent).expect("target/PROFILE/deps/test");
    let path = folder.join(name);
    assert!(path.is_file(), "{} is not built: run tests/run build", path.display());
    path
}

/// A process with this environment and no other.
fn command(args: &[String], env: &BTreeMap<String, String>) -> Command {
    let (name, args) = args.split_first().expect("a command");
    let mut command = Command::new(program(name));
    command.args(args).env_clear().envs(env).stdin(Stdio::null()).stdout(Stdio::null());
    command
}

fn named<'a>(containers: &'a [Container], name: &str) -> &'a Container {
    containers.iter().find(|container| container.deployment == name).expect("a Deployment")
}

#[tokio::test]
async fn the_manifests_run_and_their_probes_answer() {
    let machine = Machine::new();
    let containers = Manifests::render("base").containers();
    let mut pods = Vec::new();
    for (container, ip) in containers.iter().zip(["127.0.7.1", "127.0.7.2", "127.0.7.3"]) {
        pods.push(machine.start(container, ip));
    }
    assert_eq!(pods.len(), 3, "writer, reader and compactor");
    for pod in &mut pods {
        for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
            pod.passes(probe).await;
        }
    }

    let pod = |name: &str| pods.iter().find(|pod| pod.container.deployment == name);
    let writer = pod("cairn-writer").expect("the writer").url("/v1/kv/greeting");
    let reply = machine.client.put(writer).body("hello").send().await.expect("a reply");
    assert_eq!(reply.status(), StatusCode::NO_CONTENT);
    let seq = reply.headers().get("cairn-seq").expect("every data reply has a seq");
    let reader = pod("cairn-reader").expect("the reader").url("/v1/kv/greeting");
    let reply = machine.client.get(reader).header("cairn-min-seq", seq).send().await;
    let reply = reply.expect("a reply");
    assert_eq!(reply.status(), StatusCode::OK);
    assert_eq!(reply.text().await.expect("a value"), "hello");

    for pod in pods {
        let name = pod.container.deployment.clone();
        assert_eq!(pod.stop().await.code(), Some(0), "{name}");
    }
}

#[tokio::test]
async fn a_second_writer_pod_is_alive_but_not_ready_until_the_first_one_stops() {
    let machine = Machine::new();
    let containers = Manifests::render("base").containers();
    let container = named(&containers, "cairn-writer");
    let mut old = machine.start(container, "127.0.7.4");
    old.passes("readinessProbe").await;
    let mut new = machine.start(container, "127.0.7.5");
    new.passes("livenessProbe").await;
    let readiness = container.probe("readinessProbe");
    assert_eq!(new.probe(&readiness).await, Some(StatusCode::SERVICE_UNAVAILABLE));
    assert_eq!(old.probe(&readiness).await, Some(StatusCode::OK));

    assert_eq!(old.stop().await.code(), Some(0));
    new.passes("readinessProbe").await;
    let put = machine.client.put(new.url("/v1/kv/a")).body("1").send().await;
    assert_eq!(put.expect("a reply").status(), StatusCode::NO_CONTENT);
    assert_eq!(new.stop().await.code(), Some(0));
}

#[test]
fn every_variable_is_a_setting_and_takes_effect() {
    let containers = Manifests::render("base").containers();
    let pods = containers.iter().map(|c| (c.deployment.clone(), c.args(), c.env("10.0.0.1")));
    let services = compose().into_iter().map(|s| (s.name, s.command, s.env));
    let all: Vec<_> = pods.chain(services).collect();
    assert_eq!(all.len(), 3 + 4);
    for (name, args, env) in all {
        let output = command(&args, &env).arg("--print-config").stdout(Stdio::piped()).output();
        let output = output.expect("the program starts");
        assert!(output.status.success(), "{name}: --print-config ends with {}", output.status);
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        for variable in env.keys().filter(|variable| variable.starts_with("CAIRN_")) {
            let source = format!("# environment {variable}");
            let used = printed.lines().any(|line| line.ends_with(&source));
            assert!(used, "{name}: {variable} is not in\n{printed}");
        }
    }
}

#[tokio::test]
async fn the_health_checks_of_compose_tell_who_answers() {
    let machine = Machine::new();
    let services = compose();
    let ips = ["127.0.7.6", "127.0.7.7", "127.0.7.8", "127.0.7.10"];
    let healthy = |service: &Service, ip: &str| {
        let (how, check) = service.health_check.split_first().expect("a health check");
        assert_eq!(how, "CMD", "{}", service.name);
        let check: Vec<_> = check.iter().map(|word| word.replace("127.0.0.1", ip)).collect();
        let output = command(&check, &BTreeMap::new()).stderr(Stdio::null()).output();
        output.expect("the check starts").status.success()
    };
    let mut running = Vec::new();
    for (service, ip) in services.iter().zip(ips) {
        assert!(!healthy(service, ip), "{}: nothing runs yet", service.name);
        let env = machine.here(service.env.clone(), &service.mounts, ip);
        let child = command(&service.command, &env).stderr(Stdio::null()).spawn();
        running.push(Running(child.expect("the program starts")));
    }
    assert_eq!(running.len(), 4, "writer, two readers and compactor");
    for (service, ip) in services.iter().zip(ips) {
        let mut left = SOON;
        while !healthy(service, ip) {
            let next = left.checked_sub(LOOK_EVERY);
            left = next.unwrap_or_else(|| panic!("{} is not healthy", service.name));
            sleep(LOOK_EVERY).await;
        }
    }
}

#[test]
fn caches_fit_the_memory_that_is_requested() {
    /// What a process takes beside its caches, as measured.
    const REST_BYTES: u64 = 350 << 20;
    let size = |text: &str| text.parse::<Size>().expect("a size").0;
    let containers = Manifests::render("base").containers();
    for (name, program) in [
        ("cairn-writer", cairn_writer::config::PROGRAM),
        ("cairn-reader", cairn_reader::config::PROGRAM),
    ] {
        let container = named(&containers, name);
        let env = container.env("10.0.0.1");
        let caches = size(&env["CAIRN_CACHE_MEMORY"]) + size(&env["CAIRN_META_MEMORY"]);
        let requested = container.memory("requests");
        assert!(caches + REST_BYTES <= requested, "{name}: {caches} bytes of caches");
        let settings = program.all_settings();
        let setting = settings.iter().find(|setting| setting.name == "request_memory");
        let Some(Fallback::Is(requests)) = setting.map(|setting| setting.fallback) else {
            panic!("request_memory has a default")
        };
        let limit = container.memory("limits");
        assert!(requested + size(requests) <= limit, "{name}: no room for requests");
    }
}

#[test]
fn services_lead_to_the_ports_that_processes_listen_on() {
    let manifests = Manifests::render("base");
    let containers = manifests.containers();
    let mut count = 0;
    for service in manifests.of_kind("Service") {
        let name = service["metadata"]["name"].as_str().expect("a name");
        let container = named(&containers, name);
        assert_eq!(service["spec"]["selector"], container.pod["metadata"]["labels"], "{name}");
        let port = &service["spec"]["ports"][0];
        let target = container.port(port["targetPort"].as_str().expect("a named port"));
        assert_eq!(port["port"], target, "{name}");
        let env = container.env("10.0.0.1");
        assert_eq!(env["CAIRN_LISTEN"], format!("0.0.0.0:{target}"), "{name}");
        assert_eq!(env["CAIRN_OPS_LISTEN"], format!("0.0.0.0:{}", container.port("ops")), "{name}");
        let scraped = &container.pod["metadata"]["annotations"]["prometheus.io/port"];
        assert_eq!(scraped, &container.port("ops").to_string(), "{name}");
        count += 1;
    }
    assert_eq!(count, 3);
}

#[test]
fn every_pod_is_restricted() {
    let containers = Manifests::render("base").containers();
    for container in &containers {
        let name = &container.deployment;
        let security = json!({
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": { "drop": ["ALL"] },
        });
        assert_eq!(container.security(), &security, "{name}");
        let pod = &container.pod["spec"];
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true, "{name}");
        assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault", "{name}");
        assert_eq!(pod["automountServiceAccountToken"], false, "{name}");
        assert_eq!(pod["serviceAccountName"], Value::from(name.as_str()));
        assert_eq!(pod["enableServiceLinks"], false, "{name}: its variables would be settings");
    }
}
