//! What writers, compactors and administrators do.

use super::*;

impl Config {
    pub(super) fn is(&self, variant: Variant) -> bool {
        self.variant == variant
    }

    pub(super) fn process_actions(
        &self,
        state: &State,
        (role, p): (Role, usize),
        process: &Process,
        actions: &mut Vec<Action>,
    ) {
        if process.claims > 0 {
            actions.push(Action::Claim(role, p));
        }
        if process.epoch == 0 {
            return;
        }
        match role {
            Role::Writer if process.jobs.is_empty() && process.made < self.data => {
                let boundaries = process.flushed + 1..=self.data;
                actions.extend(boundaries.map(|boundary| Action::Flush(p, boundary)));
            }
            Role::Compactor
                if process.jobs.len() < self.jobs && state.compactions < self.compactions =>
            {
                let body = state.body();
                if !body.l0.is_empty() && !body.runs.is_empty() {
                    actions.push(Action::Compact(p, Pick::L0));
                }
                if body.tree().next().is_some() {
                    actions.push(Action::Compact(p, Pick::Everything));
                }
            }
            _ => {}
        }
        for (i, job) in process.jobs.iter().enumerate() {
            let at = JobAt { role, process: p, job: i };
            if job.attempts < self.attempts || self.settled(state, role, process, job).is_some() {
                actions.push(Action::Commit(at));
            }
            let open = self.settled(state, role, process, job).is_none();
            if job.attempts == 0 || (open && self.is(Variant::DeleteOwnAfterReadBack)) {
                actions.push(Action::Abandon(at));
            }
        }
    }

    pub(super) fn admin_actions(&self, state: &State, actions: &mut Vec<Action>) {
        let current = &state.current;
        if state.checkpoints < self.checkpoints {
            let older = |id: &BodyId| {
                self.is(Variant::CheckpointOlder)
                    && *id < current.body
                    && !state.bodies_gone.contains(id)
            };
            let named = |id: &BodyId| *id == current.body || older(id);
            actions.extend(state.bodies.keys().copied().filter(named).map(Action::Checkpoint));
        }
        actions.extend(state.body().checkpoints.iter().copied().map(Action::Release));
        if state.retains < self.retains {
            actions.push(Action::Retain);
        }
    }

    pub(super) fn claim(&self, state: &mut State, role: Role, p: usize) {
        let mut current = state.current.clone();
        current.epochs[role.index()] += 1;
        let process = &mut state.processes[role.index()][p];
        process.claims -= 1;
        process.epoch = current.epochs[role.index()];
        process.made = 0;
        process.flushed = current.replay_from;
        if !self.is(Variant::CommitUnderOtherEpoch) {
            process.jobs.clear();
        }
        state.swap(current);
    }

    fn upload(state: &mut State, role: Role, p: usize, job: Job) {
        state.ssts.insert(job.out.sst);
        let process = &mut state.processes[role.index()][p];
        process.made += 1;
        process.jobs.push(job);
    }

    pub(super) fn flush(state: &mut State, p: usize, boundary: u8) {
        let Process { epoch, made, flushed, .. } = state.processes[Role::Writer.index()][p];
        let data = ((1 << boundary) - 1) & !((1 << flushed) - 1);
        let out = Entry { sst: Sst { role: Role::Writer, epoch, n: made }, data };
        let job = Job { out, boundary, inputs: BTreeSet::new(), attempts: 0, body: 0 };
        Self::upload(state, Role::Writer, p, job);
    }

    pub(super) fn compact(state: &mut State, p: usize, pick: Pick) {
        let Process { epoch, made, .. } = state.processes[Role::Compactor.index()][p];
        let body = state.body();
        let inputs: Vec<Entry> = match pick {
            Pick::L0 => body.l0.clone(),
            Pick::Everything => body.tree().copied().collect(),
        };
        let data = inputs.iter().fold(0, |union, entry| union | entry.data);
        let out = Entry { sst: Sst { role: Role::Compactor, epoch, n: made }, data };
        let inputs = inputs.iter().map(|entry| entry.sst).collect();
        state.compactions += 1;
        let job = Job { out, boundary: 0, inputs, attempts: 0, body: 0 };
        Self::upload(state, Role::Compactor, p, job);
    }

    /// What a reading of CURRENT says about a job; `None` = it is open, a swap may be sent.
    fn settled(&self, state: &State, role: Role, process: &Process, job: &Job) -> Option<Fate> {
        let (current, body, out) = (&state.current, state.body(), job.out.sst);
        if current.epochs[role.index()] != process.epoch {
            return Some(Fate::Fenced);
        }
        let known = body.holds(out) || body.retired.contains(&out);
        let undecided = state.in_flight.iter().any(|current| current.body == job.body);
        match (role, self.variant) {
            (Role::Writer, _) if job.attempts == 0 => {
                (current.replay_from >= job.boundary).then_some(Fate::Failed)
            }
            (Role::Writer, Variant::SettleByNonce) if current.body == job.body => Some(Fate::In),
            (Role::Writer, Variant::SettleFlushById) if known => Some(Fate::In),
            (Role::Writer, Variant::SettleByNonce | Variant::SettleFlushById) => {
                (!undecided).then_some(Fate::Failed)
            }
            (Role::Writer, _) => (current.replay_from >= job.boundary).then_some(Fate::In),
            (Role::Compactor, Variant::InputsNotChecked) => known.then_some(Fate::In),
            (Role::Compactor, _) if job.inputs.iter().all(|&sst| body.holds(sst)) => None,
            (Role::Compactor, Variant::OutputGoneIsFailed) if !body.holds(out) => {
                Some(Fate::Failed)
            }
            (Role::Compactor, _) if job.attempts == 0 => Some(Fate::Failed),
            (Role::Compactor, _) => Some(Fate::In),
        }
    }

    pub(super) fn commit(&self, state: &mut State, at: JobAt) {
        let process = &state.processes[at.role.index()][at.process];
        let job = &process.jobs[at.job];
        if let Some(fate) = self.settled(state, at.role, process, job) {
            let process = &mut state.processes[at.role.index()][at.process];
            let job = process.jobs.remove(at.job);
            match fate {
                Fate::Fenced => (process.epoch, process.made, process.flushed) = (0, 0, 0),
                Fate::In => process.flushed = process.flushed.max(job.boundary),
                Fate::Failed => {
                    let named = job.attempts > 0 && !self.is(Variant::OutputGoneIsFailed);
                    if !named {
                        state.ssts.remove(&job.out.sst);
                    }
                }
            }
            if fate == Fate::Fenced {
                process.jobs.clear();
            }
            return;
        }
        let mut body = state.body().clone();
        body.version += 1;
        let mut current = Current { version: body.version, ..state.current.clone() };
        match at.role {
            Role::Writer => {
                body.l0.insert(0, job.out);
                current.replay_from = job.boundary;
            }
            Role::Compactor => {
                let replaced = |entry: &Entry| job.inputs.contains(&entry.sst);
                body.retired.extend(
                    body.tree().filter(|entry| replaced(entry)).map(|e| e.sst).collect::<Vec<_>>(),
                );
                body.l0.retain(|entry| !replaced(entry));
                body.runs.retain(|entry| !replaced(entry));
                body.runs.insert(0, job.out);
            }
        }
        current.body = state.put_body(body);
        let job = &mut state.processes[at.role.index()][at.process].jobs[at.job];
        job.attempts += 1;
        job.body = if self.looks_at_body() { current.body } else { 0 };
        state.in_flight.insert(current);
    }

    fn looks_at_body(&self) -> bool {
        self.is(Variant::SettleByNonce) || self.is(Variant::SettleFlushById)
    }

    pub(super) fn administer(&self, state: &mut State, action: &Action) {
        let mut body = state.body().clone();
        body.version += 1;
        let mut history_from = state.current.history_from;
        match *action {
            Action::Checkpoint(id) => {
                state.checkpoints += 1;
                body.checkpoints.insert(id);
            }
            Action::Release(id) => drop(body.checkpoints.remove(&id)),
            _ => {
                state.retains += 1;
                body.retired.retain(|sst| state.ssts.contains(sst));
                let past = if self.is(Variant::HistoryTwoPast) { 2 } else { 0 };
                history_from = body.version + past;
            }
        }
        state.commit(body, history_from);
    }
}

/// What became of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    In,
    Failed,
    Fenced,
}
