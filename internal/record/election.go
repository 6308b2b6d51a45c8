package record

// An election is a lock in mode X whose entries have a value, set by the candidate and later by the leader.

// maxCampaign bounds the value of a candidate, and maxValue that of a leader, in bytes. The leader's is also
// at most a quarter of a record.
const (
	maxCampaign = 1 << 10
	maxValue    = 64 << 10
)

// proclaim sets the value of a holder. A late proclaim with a lower sequence changes nothing.
func (m *machine) proclaim(op *Op) Result {
	h := m.holderX(op)
	if h == nil {
		m.promote()
		return Result{Verdict: NotHolder}
	}
	if most := min(maxValue, m.lim.MaxBytes/4); len(op.Value.Data) > most {
		return Result{Verdict: TooLarge, Have: most}
	}
	seq := sequenceOf(op.ID)
	if h.Proclaim >= seq {
		return Result{Verdict: Applied}
	}
	e := *h
	e.Value, e.Proclaim = op.Value, seq
	if need := m.entryBound(&e) - m.entryBound(h); !m.reserveBytes(need) && need > 0 {
		return m.tooLarge()
	}
	*h = e
	return Result{Verdict: Applied}
}
