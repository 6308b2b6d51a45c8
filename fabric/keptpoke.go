package fabric

import (
	"context"
	"slices"
	"strings"

	"github.com/lockfabric/lockfabric/internal/engine"
	"github.com/lockfabric/lockfabric/internal/record"
)

// The answers of a process that is asked for an entry that it may keep.
const (
	answerUsed     = "used"
	answerReleased = "released"
)

// The values of Party.Kept.
const (
	KeptUsed    = "used"
	KeptIdle    = "idle"
	KeptUnknown = "unknown"
)

// askKeeper asks the process of an entry that it may keep to release it, if nothing else refuses a try. It reports
// whether the entry was released, and if not, whether the process says that it is used. Both are false without an
// answer.
func (a *attempt) askKeeper(ctx context.Context, refused *engine.RefusedError) (released, used bool) {
	if a.askedHolders || a.op.Verb != record.OpTry || a.req.stamp != nil || refused.Verdict != record.Held || !record.MayBeKept(refused.Blocker.Meta) {
		return false, false
	}
	a.askedHolders = true
	return a.session.askToRelease(ctx, a.enc, &refused.Blocker)
}

// askToRelease sends the request of askKeeper. The answer is only a hint; the leader's record decides.
func (s *session) askToRelease(ctx context.Context, enc string, e *record.Entry) (released, used bool) {
	took, _ := s.m.rtt.RTT()
	answer := s.m.hints.ask(ctx, e.Lease(), e.ID, enc+" "+giveUpText+e.ID, engine.PokeTime(took))
	return answer == answerReleased, answer == answerUsed
}

// giveUp handles the request of another process for an entry of this one. It does not answer if it does not know the
// entry.
func (m *Manager) giveUp(key, id string, answer func(string)) {
	s, _ := m.running(false)
	if s == nil {
		return
	}
	kept := s.shard(key).engine.GiveUp(key, id, func(used bool) {
		if used {
			answer(answerUsed)
		} else {
			answer(answerReleased)
		}
	})
	if sl, ok := s.liveLeases.Load(record.LeaseOf(id)); ok && !kept && sl.(*leaseShare).holds(key, id) {
		answer(answerUsed)
	}
}

// unused returns which entries under a lease of this process are kept and idle. It returns "" if it does not know the
// lease.
func (m *Manager) unused(lease string) string {
	s, _ := m.running(false)
	if s == nil {
		return ""
	}
	if _, ok := s.liveLeases.Load(lease); !ok {
		return ""
	}
	var unused []string
	for _, sh := range s.shards {
		unused = append(unused, sh.engine.Unused(lease)...)
	}
	return "." + strings.Join(unused, ".") + "."
}

// askKeptUse sets Kept of all entries under one lease that may be kept, with one request.
func (s *session) askKeptUse(ctx context.Context, parties []*Party) {
	parties = slices.DeleteFunc(slices.Clone(parties), func(p *Party) bool { return p.Token == 0 || !record.MayBeKept(p.Metadata) })
	if len(parties) == 0 {
		return
	}
	lease := parties[0].Lease.ID
	took, _ := s.m.rtt.RTT()
	unused := s.m.hints.ask(ctx, lease, lease, unusedText+lease, engine.PokeTime(took))
	for _, p := range parties {
		switch {
		case unused == "":
			p.Kept = KeptUnknown
		case strings.Contains(unused, strings.TrimPrefix(p.ID, lease)+"."):
			p.Kept = KeptIdle
		default:
			p.Kept = KeptUsed
		}
	}
}
