//! For each rule a scene in which the lack of it shows, and what is violated then.

use super::machine::REFUSED;
use super::rules::{Rule, Rules};
use super::scenes;
use super::world::Scene;

const UNSEEN: &str = "and nobody will see it";
const FENCED: &str = "takes itself for fenced, and still has the disk";
const HOLDER: &str = "the disk seems to be held by";
const MOUNTED: &str = "has mounted";
const MIX: &str = "its commit stored";
const GONE: &str = "of the newest state, is gone";

/// The scene without the rule, and a part of what the search says of its violation.
pub fn without(rule: Rule) -> (Scene, &'static str) {
    let (scene, wrong) = match rule {
        Rule::BlocksBeforeRecord => (scenes::slow_claim(), GONE),
        Rule::CreateIfAbsent => (scenes::slow_claim(), "was acknowledged, and now is"),
        Rule::ReadBack => (scenes::slow_claim(), UNSEEN),
        Rule::PendingFirst => (scenes::doubt(), FENCED),
        Rule::DeleteAfterRecord | Rule::DeleteAfterAnswer => (scenes::garbage(), GONE),
        Rule::HeartbeatWaits | Rule::GiveUpBeforeRecord => (scenes::doubt(), FENCED),
        Rule::ReleaseWaits => (scenes::release(), MOUNTED),
        Rule::ReleaseAtOwnHead => (scenes::doubt(), "is not of who holds the disk"),
        Rule::GiveUpBurns => (scenes::doubt(), MIX),
        Rule::GiveUpByClaim => (scenes::listing_give_up(), MOUNTED),
        Rule::AskHolder => (scenes::polite(), "though nobody asked for that"),
        Rule::ResumeClaims => (scenes::resume(), MIX),
        Rule::CheckpointCounts | Rule::FirstLookAgain => (scenes::slow_claim(), HOLDER),
        Rule::LogAgainBeforeDamage => (scenes::slow_claim(), REFUSED),
        Rule::ClaimBeforeRead | Rule::VoidClaims => (scenes::slow_claim(), MOUNTED),
        Rule::LeaveVoidClaims => (scenes::sleeper(), UNSEEN),
        Rule::GoneIsNoDamage | Rule::MapsAgainBeforeDamage => (scenes::slow_claim(), REFUSED),
        Rule::MapsAgain => (scenes::three(), MOUNTED),
        Rule::CheckpointOfHead => (scenes::checkpoints(), "is of a state that never was"),
        Rule::CheckpointBeforeRelease => (scenes::polite(), HOLDER),
        Rule::NewCheckpointBeforeOldGoes => (scenes::old_checkpoint(), "and is in no checkpoint"),
        Rule::CheckpointBeforePrune => (scenes::slow_claim(), "and is in no checkpoint"),
        Rule::KeepClaims => (scenes::crash(), UNSEEN),
        Rule::DeleteBeforePrune => (scenes::listing_pruned(), MOUNTED),
        Rule::CheckpointKeepsGarbage => (scenes::heir(), MOUNTED),
        Rule::Grace | Rule::SlowListingLooksAgain => (scenes::listing_reader(), MOUNTED),
        Rule::AskWhyGone | Rule::ChangesInLogFirst => (scenes::reading(), REFUSED),
        Rule::SweepSparesNewer | Rule::SweepSparesMap => (scenes::slow_claim(), GONE),
        Rule::ListUpToEnd | Rule::ListRecordsFirst => (scenes::listing_reader(), MOUNTED),
        Rule::ListSkipsClaims | Rule::ListKnowsVoidClaims | Rule::ListHides => {
            (scenes::listing_pruned(), MOUNTED)
        }
        Rule::ListKnowsSuperseder => (scenes::listing_twice(), MOUNTED),
    };
    let rules = Rules::without(rule);
    (Scene { rules, ..scene }, wrong)
}
