//! The config as a whole: every text is compiled or refused, never worse; what is compiled keeps
//! the snapshot's promises; the configs that Firedoor ships give nothing to mend.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use firedoor_control::compile::{Compiled, compile};
use firedoor_control::lint::lint;
use jiff::civil::{Date, date};
use proptest::prelude::*;

#[path = "../../tests/fuzz/checks/config.rs"]
mod check;

const TODAY: Date = date(2026, 6, 1);

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

fn files(directory: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(repository(directory)).expect("the directory is there");
    let mut files: Vec<_> = entries.map(|entry| entry.expect("it can be read").path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{directory} is empty");
    files
}

#[test]
fn shipped_configs_give_nothing_to_mend() {
    for file in files("configs") {
        let text = std::fs::read_to_string(&file).expect("it can be read");
        let path = file.display().to_string();
        let findings = lint(&path, &text, TODAY).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(findings, [], "{path}");
        check::check(&text);
    }
}

#[test]
fn corpus_is_compiled_or_refused() {
    for file in files("tests/corpus/config") {
        let bytes = std::fs::read(&file).expect("it can be read");
        check::check(&String::from_utf8_lossy(&bytes));
    }
}

/// A config and, for each rule and each of its sides, the workloads that it selects.
#[derive(Clone, Debug)]
struct Sample {
    text: String,
    selected: Vec<[Vec<bool>; 2]>,
}

/// Labels of a workload: a tier out of three and, for some, an environment.
type Labels = (usize, Option<bool>);

#[derive(Clone, Debug)]
enum Selector {
    Any,
    Tiers(BTreeSet<usize>),
    TierOfEnv(usize, bool),
    Workload(usize),
    Group,
}

impl Selector {
    fn text(&self, workloads: usize) -> String {
        match self {
            Self::Any => "{ any = true }".into(),
            Self::Tiers(tiers) => {
                let tiers: Vec<_> = tiers.iter().map(|tier| format!("\"t{tier}\"")).collect();
                format!("{{ tier = [{}] }}", tiers.join(", "))
            }
            Self::TierOfEnv(tier, env) => format!("{{ tier = \"t{tier}\", env = \"{env}\" }}"),
            Self::Workload(index) => format!("{{ workload = \"w{}\" }}", index % workloads),
            Self::Group => "{ group = \"office\" }".into(),
        }
    }

    fn selects(&self, index: usize, labels: Labels, workloads: usize) -> bool {
        match self {
            Self::Any => true,
            Self::Tiers(tiers) => tiers.contains(&labels.0),
            Self::TierOfEnv(tier, env) => labels == (*tier, Some(*env)),
            Self::Workload(chosen) => index == chosen % workloads,
            Self::Group => false,
        }
    }
}

fn any_selector() -> impl Strategy<Value = Selector> {
    prop_oneof![
        Just(Selector::Any),
        prop::collection::btree_set(0usize..3, 1..3).prop_map(Selector::Tiers),
        (0usize..3, any::<bool>()).prop_map(|(tier, env)| Selector::TierOfEnv(tier, env)),
        any::<prop::sample::Index>().prop_map(|index| Selector::Workload(index.index(100))),
        Just(Selector::Group),
    ]
}

fn any_config() -> impl Strategy<Value = Sample> {
    let labels = (0usize..3, any::<Option<bool>>());
    let side = || prop::collection::vec(any_selector(), 1..3);
    let tier = prop::sample::select(firedoor_control::intent::TIERS.to_vec());
    let action = prop::sample::select(vec!["allow", "deny", "reject", "pass"]);
    let service =
        prop::sample::select(vec!["any", "tcp/80", "udp/1-9", "icmp/echo", "web", "ip/47"]);
    let rule = (side(), side(), tier, 0u32..3, action, service);
    let workloads = prop::collection::vec(labels, 1..8);
    (workloads, prop::collection::vec(rule, 0..8)).prop_map(|(workloads, rules)| {
        let mut text = "[switch]\nname = \"sample\"\n\
            [[service]]\nname = \"web\"\nmatch = [\"tcp/80\", \"tcp/443\"]\n\
            [[group]]\nname = \"office\"\ncidr = \"192.0.2.0/24\"\n"
            .to_owned();
        for (index, (tier, env)) in workloads.iter().enumerate() {
            let env = env.map(|env| format!(", env = \"{env}\"")).unwrap_or_default();
            text += &format!(
                "[[workload]]\nname = \"w{index}\"\nkind = \"container\"\n\
                 labels = {{ tier = \"t{tier}\"{env} }}\nip = \"10.0.0.{}/24\"\n",
                index + 1
            );
        }
        let count = workloads.len();
        let mut selected = Vec::new();
        for (index, (from, to, tier, priority, action, service)) in rules.iter().enumerate() {
            let list = |side: &[Selector]| {
                side.iter().map(|selector| selector.text(count)).collect::<Vec<_>>().join(", ")
            };
            text += &format!(
                "[[rule]]\nname = \"{index}\"\nfrom = [{}]\nto = [{}]\ntier = \"{tier}\"\n\
                 priority = {priority}\naction = \"{action}\"\nservice = \"{service}\"\n",
                list(from),
                list(to)
            );
            selected.push([from, to].map(|side| {
                let any = |(index, labels): (usize, &Labels)| {
                    side.iter().any(|selector| selector.selects(index, *labels, count))
                };
                workloads.iter().enumerate().map(any).collect()
            }));
        }
        Sample { text, selected }
    })
}

fn compiled(text: &str) -> Compiled {
    compile("sample.toml", text, None, TODAY).unwrap_or_else(|errors| panic!("{errors}\n{text}"))
}

proptest! {
    #[test]
    fn tags_select_what_selectors_say(sample in any_config()) {
        let snapshot = compiled(&sample.text).snapshot;
        check::keeps_its_promises(&snapshot);
        for rule in &snapshot.rules {
            let index: usize = rule.name.parse().expect("rules are named by their index");
            for (set, selected) in [&rule.from, &rule.to].into_iter().zip(&sample.selected[index]) {
                let tags = snapshot.workloads.iter().map(|workload| set.contains(workload.tag));
                prop_assert_eq!(&tags.collect::<Vec<_>>(), selected);
            }
        }
    }

    #[test]
    fn compiling_is_deterministic_to_the_byte(sample in any_config()) {
        let bytes = || {
            let snapshot = compiled(&sample.text).snapshot;
            firedoor_api::encode(&snapshot).expect("it is small")
        };
        prop_assert_eq!(bytes(), bytes());
    }

    #[test]
    fn a_mutilated_config_is_compiled_or_refused(
        mut bytes in prop::sample::select(files("configs"))
            .prop_map(|file| std::fs::read(file).expect("it can be read")),
        edits in prop::collection::vec(
            (any::<prop::sample::Index>(), 0usize..40, prop_oneof![
                "\\PC{0,8}", "[\\[\\]{}=\",.0-9a-z\n]{0,8}"
            ]),
            1..6,
        ),
    ) {
        for (at, removed, inserted) in edits {
            let start = at.index(bytes.len() + 1);
            let end = (start + removed).min(bytes.len());
            bytes.splice(start..end, inserted.into_bytes());
        }
        check::check(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn any_text_is_compiled_or_refused(text in "\\PC{0,200}") {
        check::check(&text);
    }
}
