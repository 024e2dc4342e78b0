//! The two questions that a test asks of a model: do all properties hold in every reachable state,
//! and is there a trace that breaks one of them.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::hash::Hash;

use stateright::{Checker, Expectation, HasDiscoveries, Model};

/// Panics unless every state of `model` is explored, every `always` property holds in all of them,
/// and every `sometimes` property has an example (so that the model is known to reach what it is
/// about). `states_min` guards against a model that has become vacuous. Prints
/// the number of states.
pub(crate) fn holds<M>(model: M, states_min: usize)
where
    M: Model + Send + Sync + 'static,
    M::State: Clone + Debug + Hash + PartialEq + Send + Sync,
    M::Action: Clone + Debug + PartialEq,
{
    let checker = model.checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let (states, depth) = (checker.unique_state_count(), checker.max_depth());
    for property in checker.model().properties() {
        let found = checker.discovery(property.name);
        match property.expectation {
            Expectation::Always => {
                let found = found.map(|trace| trace.to_string());
                assert_eq!(found, None, "{} is broken", property.name);
            }
            _ => assert!(found.is_some(), "{} is never reached", property.name),
        }
    }
    assert!(states >= states_min, "only {states} states (depth {depth}), expected {states_min}");
    say(&format!("holds in {states} states, depth {depth}"));
}

/// Panics unless some trace of `model` breaks the property `name`. Prints the trace's length.
pub(crate) fn refuted<M>(variant: &str, model: M, name: &'static str)
where
    M: Model + Send + Sync + 'static,
    M::State: Clone + Debug + Hash + PartialEq + Send + Sync,
    M::Action: Clone + Debug + PartialEq,
{
    let wanted = HasDiscoveries::AllOf(BTreeSet::from([name]));
    let checker = model.checker().finish_when(wanted).spawn_bfs().join();
    let states = checker.unique_state_count();
    let found = checker.discovery(name);
    let Some(trace) = found else {
        panic!("{variant}: {name}: no counterexample in {states} states");
    };
    say(&format!("{variant}: refuted in {} steps: {name}", trace.into_actions().len()));
}

#[expect(clippy::print_stdout, reason = "the counts are the evidence")]
fn say(line: &str) {
    println!("{line}");
}
