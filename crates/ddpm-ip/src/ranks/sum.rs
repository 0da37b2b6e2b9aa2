//! A step's gradient from the partial sums of each rank, in the order of the tree.
//!
//! At a stage some ranks, its members, cut what they hold into as many segments of the parameters, and each takes one: it receives
//! its segment of all members' partial sums, and adds those that the tree adds. After the last stage it has the sum of all pieces
//! for its segment. Then the stages are gone back, and the members send each other what they have.
//!
//! Where all machines have as many ranks, those of a machine are the members of the first stage, and those at the same place on their
//! machines are the members of the second. So what leaves a machine has been added up there.

use super::Link;
use ddpm_net::gpu::{Buffer, Group};
use ddpm_net::{accumulate, add_partial_sums, done, partial_sums};
use std::borrow::Cow;
use std::io::Result;
use std::ops::Range;

/// What carries values between ranks.
pub(super) trait Carrier {
    /// Values, wherever they lie.
    type Values;

    /// Some of them.
    fn part(&self, of: &Self::Values, part: Range<usize>) -> Self::Values;

    /// Adds so many values to others.
    fn add(&self, sum: &mut Self::Values, other: &Self::Values, len: usize);

    /// Values one after another, so many of each.
    fn join(&self, parts: &[(Self::Values, usize)]) -> Self::Values;

    /// Sends ranks their parts, and returns what others have for this one: `receives` says from which rank and how many values. Both are
    /// in the order of the ranks. All ranks call it together.
    ///
    /// # Errors
    /// A process that is gone.
    fn exchange(
        &self,
        sends: &[(usize, &Self::Values, Range<usize>)],
        receives: &[(usize, usize)],
    ) -> Result<Vec<Self::Values>>;
}

/// Who is added up with whom.
pub(super) struct Plan {
    /// This rank.
    pub(super) rank: usize,
    /// Ranks of each machine, [if all have as many](per_machine), or else all ranks.
    pub(super) per_machine: usize,
    /// All pieces of the step.
    pub(super) pieces: usize,
    /// Those of each rank.
    pub(super) shares: Vec<Range<usize>>,
    /// Values of the gradient.
    pub(super) len: usize,
    /// Segments begin at multiples of it.
    pub(super) grain: usize,
}

/// How many ranks each machine has, if it is the same number for all and more than one; else all ranks.
pub(super) fn per_machine(hosts: &[String]) -> usize {
    let ranks = hosts.iter().take_while(|host| **host == hosts[0]).count();
    let even = hosts.chunks(ranks).all(|of_one| of_one.len() == ranks && of_one.iter().all(|host| *host == of_one[0]));
    if even && ranks > 1 { ranks } else { hosts.len() }
}

/// Ranks that add up what they hold, each for a segment of the parameters.
struct Stage {
    members: Vec<usize>,
    /// Those of the members, in what this rank has for itself after the stage before.
    segments: Vec<Range<usize>>,
    /// Which member this rank is.
    own: usize,
}

impl Stage {
    fn own(&self) -> &Range<usize> {
        &self.segments[self.own]
    }

    /// The other members and their segments.
    fn others(&self) -> impl Iterator<Item = (usize, &Range<usize>)> {
        self.members.iter().copied().zip(&self.segments).enumerate().filter(|(i, _)| *i != self.own).map(|(_, of)| of)
    }
}

impl Plan {
    /// The stages of a rank, in order.
    fn stages(&self, rank: usize) -> Vec<Stage> {
        let (count, of_machine) = (self.shares.len(), self.per_machine);
        let first = rank / of_machine * of_machine;
        let members: [Vec<usize>; 2] =
            [(first..first + of_machine).collect(), (rank % of_machine..count).step_by(of_machine).collect()];
        let mut len = self.len;
        let stage = |members: Vec<usize>| {
            let own = members.iter().position(|&member| member == rank).expect("it is in its stages");
            let stage = Stage { segments: cut(len, members.len(), self.grain), members, own };
            len = stage.own().len();
            stage
        };
        members.into_iter().filter(|members| members.len() > 1).map(stage).collect()
    }

    /// The part of the parameters for which a rank adds up all pieces.
    pub(super) fn part(&self, rank: usize) -> Range<usize> {
        self.stages(rank).iter().fold(0..self.len, |all, stage| {
            let own = stage.own();
            all.start + own.start..all.start + own.end
        })
    }

    /// The pieces of which a rank has partial sums after a stage: those of its machine, then all.
    fn held(&self, rank: usize, stage: usize) -> Range<usize> {
        let of_machine = self.per_machine;
        if stage > 0 || of_machine == self.shares.len() {
            return 0..self.pieces;
        }
        let first = rank / of_machine * of_machine;
        self.shares[first].start..self.shares[first + of_machine - 1].end
    }

    /// The sum of all pieces for this rank's [part](Self::part) of the parameters, from its partial sums of all parameters.
    ///
    /// # Errors
    /// A process that is gone.
    pub(super) fn reduce<C: Carrier>(&self, carrier: &C, mine: Vec<C::Values>) -> Result<C::Values> {
        let nodes = |pieces: &Range<usize>| partial_sums(self.pieces, pieces);
        let mut parts: Vec<(Range<usize>, C::Values)> = nodes(&self.shares[self.rank]).into_iter().zip(mine).collect();
        let mut held = self.shares.clone();
        for (i, stage) in self.stages(self.rank).into_iter().enumerate() {
            let sends: Vec<_> = stage
                .others()
                .flat_map(|(rank, segment)| parts.iter().map(move |(_, values)| (rank, values, segment.clone())))
                .collect();
            let expected: Vec<(usize, Range<usize>)> = stage
                .others()
                .flat_map(|(rank, _)| nodes(&held[rank]).into_iter().map(move |node| (rank, node)))
                .collect();
            let len = stage.own().len();
            let receives: Vec<(usize, usize)> = expected.iter().map(|&(rank, _)| (rank, len)).collect();
            let received = carrier.exchange(&sends, &receives)?;
            let mine = parts.iter().map(|(node, values)| (node.clone(), carrier.part(values, stage.own().clone())));
            let mut all: Vec<(Range<usize>, C::Values)> =
                mine.chain(expected.into_iter().map(|(_, node)| node).zip(received)).collect();
            held = (0..held.len()).map(|rank| self.held(rank, i)).collect();
            let sum = |node: Range<usize>| {
                let within =
                    |(part, _): &mut (Range<usize>, C::Values)| node.start <= part.start && part.end <= node.end;
                let parts: Vec<_> = all.extract_if(.., within).collect();
                let values = add_partial_sums(&node, parts, |sum, other| carrier.add(sum, &other, len));
                (node, values)
            };
            parts = nodes(&held[self.rank]).into_iter().map(sum).collect();
        }
        Ok(parts.pop().expect("the sum of all pieces").1)
    }

    /// All values, from this rank's [part](Self::part) of them: such as follow each other, and how many each has.
    ///
    /// # Errors
    /// A process that is gone.
    pub(super) fn collect<C: Carrier>(&self, carrier: &C, part: C::Values) -> Result<Vec<(C::Values, usize)>> {
        let len = self.part(self.rank).len();
        let mut all = vec![(part, len)];
        for stage in self.stages(self.rank).into_iter().rev() {
            let mine = if all.len() == 1 { all.swap_remove(0).0 } else { carrier.join(&all) };
            let sends: Vec<_> = stage.others().map(|(rank, _)| (rank, &mine, 0..stage.own().len())).collect();
            let receives: Vec<_> = stage.others().map(|(rank, segment)| (rank, segment.len())).collect();
            let mut received = carrier.exchange(&sends, &receives)?;
            received.insert(stage.own, mine);
            all = received.into_iter().zip(stage.segments.iter().map(Range::len)).collect();
        }
        Ok(all)
    }
}

/// So many values in as many segments, which begin at multiples of `grain`.
fn cut(len: usize, segments: usize, grain: usize) -> Vec<Range<usize>> {
    let begin = |i: usize| (i * len.div_ceil(grain) / segments * grain).min(len);
    (0..segments).map(|i| begin(i)..begin(i + 1)).collect()
}

/// Through main memory.
pub(super) struct Host<'a>(pub(super) &'a dyn Link);

impl<'a> Carrier for Host<'a> {
    /// What a gradient lends, and what was made of it.
    type Values = Cow<'a, [f32]>;

    fn part(&self, of: &Self::Values, part: Range<usize>) -> Self::Values {
        Cow::Owned(of[part].to_vec())
    }

    fn add(&self, sum: &mut Self::Values, other: &Self::Values, _: usize) {
        // Not by the pool's threads, which may be at work on the backward pass.
        sum.to_mut().iter_mut().zip(&**other).for_each(|(sum, v)| *sum += v);
    }

    fn join(&self, parts: &[(Self::Values, usize)]) -> Self::Values {
        Cow::Owned(parts.iter().map(|(values, _)| &**values).collect::<Vec<_>>().concat())
    }

    fn exchange(
        &self,
        sends: &[(usize, &Self::Values, Range<usize>)],
        receives: &[(usize, usize)],
    ) -> Result<Vec<Self::Values>> {
        let mut of_rank: Vec<Vec<&[f32]>> = vec![Vec::new(); self.0.count()];
        for (rank, values, part) in sends {
            of_rank[*rank].push(&values[part.clone()]);
        }
        let mut expected = vec![0; self.0.count()];
        for &(rank, len) in receives {
            expected[rank] += len;
        }
        let mut received = self.0.exchange(&of_rank, &expected)?;
        // From the end, so that the first part of each rank stays where it is.
        let take = |&(rank, len): &(usize, usize)| {
            let values = &mut received[rank];
            Cow::Owned(if values.len() == len { std::mem::take(values) } else { values.split_off(values.len() - len) })
        };
        let mut all: Vec<Self::Values> = receives.iter().rev().map(take).collect();
        all.reverse();
        Ok(all)
    }
}

/// From GPU to GPU.
impl Carrier for Group {
    type Values = Buffer;

    fn part(&self, of: &Buffer, part: Range<usize>) -> Buffer {
        let values = done(self.gpu().alloc(4 * part.len()));
        done(
            self.gpu()
                .turn()
                .and_then(|turn| turn.copy(values.address(), of.address().at(4 * part.start), 4 * part.len())),
        );
        values
    }

    fn add(&self, sum: &mut Buffer, other: &Buffer, len: usize) {
        done(accumulate(sum, other, len));
    }

    fn join(&self, parts: &[(Buffer, usize)]) -> Buffer {
        let all = done(self.gpu().alloc(4 * parts.iter().map(|(_, len)| len).sum::<usize>()));
        let turn = done(self.gpu().turn());
        let mut begin = 0;
        for (values, len) in parts {
            done(turn.copy(all.address().at(4 * begin), values.address(), 4 * len));
            begin += len;
        }
        all
    }

    fn exchange(&self, sends: &[(usize, &Buffer, Range<usize>)], receives: &[(usize, usize)]) -> Result<Vec<Buffer>> {
        let received: Vec<Buffer> = receives.iter().map(|(_, len)| done(self.gpu().alloc(4 * len))).collect();
        let sends = sends.iter().map(|(rank, values, part)| (*rank, values.address().at(4 * part.start), part.len()));
        let receives = receives.iter().zip(&received).map(|(&(rank, len), buffer)| (rank, buffer.address(), len));
        let some = |(_, _, len): &(usize, _, usize)| *len > 0;
        let (sends, receives): (Vec<_>, Vec<_>) = (sends.filter(some).collect(), receives.filter(some).collect());
        done(self.gpu().turn().and_then(|turn| Group::exchange(self, &turn, &sends, &receives)));
        Ok(received)
    }
}
