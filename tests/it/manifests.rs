//! What `deploy/` says, read the way Kubernetes and Compose read it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use cairn_common::config::Size;
use serde::Deserialize as _;
use serde_json::Value;

/// Every object of a kustomization, rendered.
pub(crate) struct Manifests {
    objects: Vec<Value>,
}

/// The one container of a Deployment.
pub(crate) struct Container {
    /// The name of its Deployment.
    pub(crate) deployment: String,
    /// The template of its pod.
    pub(crate) pod: Value,
    spec: Value,
    /// Its environment but for what Kubernetes fills in per pod.
    env: Vec<(String, Variable)>,
}

/// What a variable is set to.
enum Variable {
    Is(String),
    PodIp,
}

/// A probe of the kubelet's.
#[derive(Debug)]
pub(crate) struct Probe {
    pub(crate) path: String,
    pub(crate) port: u16,
    /// For how long it may fail before the pod is given up.
    pub(crate) patience_seconds: u64,
}

/// A service of the compose file.
pub(crate) struct Service {
    pub(crate) name: String,
    pub(crate) command: Vec<String>,
    pub(crate) env: BTreeMap<String, String>,
    /// The command that says whether it is well.
    pub(crate) health_check: Vec<String>,
    /// The folders in which it may write.
    pub(crate) mounts: Vec<String>,
}

/// The folder `deploy/`.
pub(crate) fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

impl Manifests {
    /// What `kubectl apply -k` would apply.
    pub(crate) fn render(kustomization: &str) -> Self {
        let folder = deploy().join("kubernetes").join(kustomization);
        let output = Command::new("kubectl")
            .arg("kustomize")
            .arg(&folder)
            .output()
            .expect("kubectl is here: tests/run installs it");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{} does not render: {error}", folder.display());
        let text = String::from_utf8(output.stdout).expect("manifests are UTF-8");
        let documents = serde_yaml_ng::Deserializer::from_str(&text);
        let objects = documents.map(|document| Value::deserialize(document).expect("valid YAML"));
        Self { objects: objects.collect() }
    }

    /// The objects of this kind.
    pub(crate) fn of_kind(&self, kind: &str) -> impl Iterator<Item = &Value> {
        self.objects.iter().filter(move |object| object["kind"] == kind)
    }

    /// The containers of all Deployments, in the order of the manifests.
    pub(crate) fn containers(&self) -> Vec<Container> {
        self.of_kind("Deployment").map(|deployment| self.container(deployment)).collect()
    }

    fn container(&self, deployment: &Value) -> Container {
        let pod = deployment["spec"]["template"].clone();
        let containers = pod["spec"]["containers"].as_array().expect("a pod has containers");
        let [spec] = containers.as_slice() else { panic!("a pod has one container") };
        let spec = spec.clone();
        let mut env = Vec::new();
        for source in array(&spec["envFrom"]) {
            // Secrets are optional: the tests need no credentials.
            if let Some(name) = source["configMapRef"]["name"].as_str() {
                env.extend(self.config_map(name));
            }
        }
        for variable in array(&spec["env"]) {
            let from_pod = &variable["valueFrom"]["fieldRef"]["fieldPath"];
            let value = match (variable["value"].as_str(), from_pod.as_str()) {
                (Some(value), None) => Variable::Is(value.to_owned()),
                (None, Some("status.podIP")) => Variable::PodIp,
                _ => panic!("{variable} is set in a way that this test does not know"),
            };
            env.push((text(&variable["name"]), value));
        }
        Container { deployment: text(&deployment["metadata"]["name"]), pod, spec, env }
    }

    fn config_map(&self, name: &str) -> Vec<(String, Variable)> {
        let mut maps = self.of_kind("ConfigMap");
        let map = maps.find(|map| map["metadata"]["name"] == name).expect("the map is rendered");
        let data = map["data"].as_object().expect("a map has data");
        data.iter().map(|(name, value)| (name.clone(), Variable::Is(text(value)))).collect()
    }
}

impl Container {
    /// The program and its arguments.
    pub(crate) fn args(&self) -> Vec<String> {
        assert!(self.spec["command"].is_null(), "the image has no entry point to replace");
        array(&self.spec["args"]).iter().map(text).collect()
    }

    /// The environment in a pod of this address; later variables may name earlier ones.
    pub(crate) fn env(&self, pod_ip: &str) -> BTreeMap<String, String> {
        let mut env = BTreeMap::<String, String>::new();
        for (name, variable) in &self.env {
            let value = match variable {
                Variable::PodIp => pod_ip.to_owned(),
                Variable::Is(text) => env.iter().fold(text.clone(), |text, (name, value)| {
                    text.replace(&format!("$({name})"), value)
                }),
            };
            env.insert(name.clone(), value);
        }
        env
    }

    /// The number of the port of this name.
    pub(crate) fn port(&self, name: &str) -> u16 {
        let ports = array(&self.spec["ports"]);
        let port = ports.iter().find(|port| port["name"] == name).expect("a declared port");
        number(&port["containerPort"]).try_into().expect("a port")
    }

    /// `startupProbe`, `livenessProbe` or `readinessProbe`.
    pub(crate) fn probe(&self, kind: &str) -> Probe {
        let probe = &self.spec[kind];
        Probe {
            path: text(&probe["httpGet"]["path"]),
            port: self.port(&text(&probe["httpGet"]["port"])),
            patience_seconds: number(&probe["periodSeconds"]) * number(&probe["failureThreshold"]),
        }
    }

    /// From the end of the preStop pause to SIGKILL.
    pub(crate) fn grace_seconds(&self) -> u64 {
        let pause = self.spec["lifecycle"]["preStop"]["sleep"]["seconds"].as_u64().unwrap_or(0);
        number(&self.pod["spec"]["terminationGracePeriodSeconds"]) - pause
    }

    /// The folders in which it may write.
    pub(crate) fn mounts(&self) -> Vec<String> {
        array(&self.spec["volumeMounts"]).iter().map(|mount| text(&mount["mountPath"])).collect()
    }

    /// `requests` or `limits` of memory, in bytes.
    pub(crate) fn memory(&self, which: &str) -> u64 {
        let written = text(&self.spec["resources"][which]["memory"]);
        let size: Size = format!("{written}B").parse().expect("a size such as 1280Mi");
        size.0
    }

    /// What the container may do.
    pub(crate) fn security(&self) -> &Value {
        &self.spec["securityContext"]
    }
}

/// The services of the compose file, with nothing set where it is read.
pub(crate) fn compose() -> Vec<Service> {
    let path = deploy().join("compose.yaml");
    let text_of_file = std::fs::read_to_string(path).expect("the compose file");
    let mut file: serde_yaml_ng::Value =
        serde_yaml_ng::from_str(&text_of_file).expect("valid YAML");
    file.apply_merge().expect("merge keys that name maps");
    let file: Value = serde_json::to_value(file).expect("keys are text");
    let services = file["services"].as_object().expect("services");
    let env = |service: &Value| {
        let variables = service["environment"].as_object().expect("a map of variables");
        let set = variables.iter().filter(|(_, value)| !value.is_null());
        set.map(|(name, value)| (name.clone(), with_default(&text(value)))).collect()
    };
    let service = |(name, service): (&String, &Value)| Service {
        name: name.clone(),
        command: array(&service["command"]).iter().map(text).collect(),
        env: env(service),
        health_check: array(&service["healthcheck"]["test"]).iter().map(text).collect(),
        mounts: array(&service["volumes"]).iter().map(mount).collect(),
    };
    services.iter().map(service).collect()
}

/// `/data` of `bucket:/data:ro`.
fn mount(volume: &Value) -> String {
    text(volume).split(':').nth(1).expect("a volume and its place").to_owned()
}

/// `${NAME:-default}` becomes `default`.
fn with_default(value: &str) -> String {
    let inside = value.strip_prefix("${").and_then(|rest| rest.strip_suffix('}'));
    let default = inside.and_then(|inside| inside.split_once(":-"));
    default.map_or(value, |(_, default)| default).to_owned()
}

fn array(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is not text")).to_owned()
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is not a number"))
}
