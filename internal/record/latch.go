package record

import (
	"cmp"
	"iter"
	"math"
	"slices"
	"strings"
	"time"
)

// latchRules are the rules of latches: a count that goes down to 0, where the latch opens for good
// and all waiters are released. Each count is marked under the lease of its caller, by its own sequence,
// so that a retry does not count again. The tombstone of the lease removes its marks. What they
// counted stays counted; a late retry is told from a new count by its age.
type latchRules struct{ baseRules }

// latch is the body.
type latch struct {
	count   int // 0 = open
	initial int
	marks   []mark // sorted by lease; none once it is open
	unused  bool   // made by the operation at hand, which has stored nothing yet

	// An operation that is based on an older revision than these and has no mark is refused: it may have counted before
	// marks were removed (fenced), or its caller gave it up (shut).
	fenced, shut uint64
}

// mark has what was counted under one lease.
type mark struct {
	lease string
	ttl   time.Duration // of the lease
	spans []span        // of sequences, sorted, never adjacent; read-only
}

type span struct{ from, to uint64 }

func (r *Record) latch() *latch { return r.Body.(*latch) }

func (latchRules) facts(r *Record, f *Facts) {
	l := r.latch()
	f.Count, f.Initial, f.Open, f.Fenced = l.count, l.initial, l.count == 0, l.fenced
}

func (latchRules) initBody(r *Record, op *Op) {
	r.Body = &latch{count: op.Limit, initial: op.Limit, unused: true}
}

// idle: a count is worth keeping, and so is the fact that the latch has opened.
func (latchRules) idle(r *Record) bool { return r.latch().unused }

// outlived: a caller that comes a day after a latch has opened is not one of its users.
func (latchRules) outlived(r *Record, age time.Duration) bool {
	return r.latch().count == 0 && age >= 24*time.Hour
}

func (latchRules) verbs() *verbTable { return &latchVerbs }

var latchVerbs = verbTable{
	OpCount:   {needEntry | needN | needLimit | needLife | proven, OpUncount, (*machine).applyToLatch},
	OpAdd:     {needEntry | needN | needLimit | needLife | proven, OpUncount, (*machine).applyToLatch},
	OpUncount: {needID | needLife | mustComplete, 0, (*machine).applyToLatch},
	OpAwait:   {needEntry | needLimit | needLife | waits, OpRelease, (*machine).applyToLatch},
	OpDelete:  {needLife, 0, (*machine).applyToLatch},
}

func (m *machine) applyToLatch(op *Op) Result {
	l := m.latch()
	if l.unused && l.initial == 0 {
		l.count, l.initial = op.Limit, op.Limit // an uncount has made it, which has no Limit
	}
	switch {
	case op.Verb == OpDelete:
		if op.All { // the waiters see that the record is another one
			m.Waiters = nil
		}
		return m.delete(op)
	case op.Verb == OpUncount:
		return l.uncount(m, op)
	case op.Limit != l.initial:
		return Result{Verdict: SizeMismatch, Have: l.initial}
	case op.Verb == OpAwait:
		return l.await(m, op)
	case l.count == 0 && op.Verb == OpAdd:
		return Result{Verdict: Finished}
	case l.count == 0, l.marked(op):
		return Result{Verdict: Applied}
	case op.Base < max(l.fenced, l.shut):
		return Result{Verdict: Stale}
	case op.Verb == OpAdd && op.N > maxCount-l.count:
		return Result{Verdict: TooLarge, Have: maxCount - l.count}
	case op.Verb == OpCount && op.N >= l.count:
		*l = latch{initial: l.initial}
		m.Waiters, m.size = nil, -1
		return Result{Verdict: Applied}
	}
	if !l.mark(m, op) {
		return m.tooLarge()
	}
	if l.unused = false; op.Verb == OpAdd {
		l.count += op.N
	} else {
		l.count -= op.N
	}
	return Result{Verdict: Applied}
}

func (l *latch) uncount(m *machine, op *Op) Result {
	switch {
	case l.unused:
		m.forceWrite, l.shut = true, m.rev+1
	case l.count == 0, l.marked(op):
	case op.Base < l.fenced:
		return Result{Verdict: Forgotten}
	case op.Base >= l.shut:
		l.shut = m.rev + 1
	}
	return Result{Verdict: Applied}
}

func (l *latch) await(m *machine, op *Op) Result {
	if l.count == 0 || m.Has(op.ID) {
		return Result{Verdict: Applied}
	}
	res := m.enqueue(op)
	l.unused = l.unused && res.Verdict != Applied
	return res
}

// find returns the index of the mark of a lease, or where it would be.
func (l *latch) find(lease string) (int, bool) {
	return slices.BinarySearchFunc(l.marks, lease, func(m mark, lease string) int { return cmp.Compare(m.lease, lease) })
}

// marked reports whether op has counted, by the marks.
func (l *latch) marked(op *Op) bool {
	i, ok := l.find(op.Lease)
	if !ok {
		return false
	}
	seq := sequenceOf(op.ID)
	return slices.ContainsFunc(l.marks[i].spans, func(s span) bool { return s.from <= seq && seq <= s.to })
}

// mark notes that op has counted. It returns false if there is no room for that.
func (l *latch) mark(m *machine, op *Op) bool {
	i, known := l.find(op.Lease)
	added, need := mark{lease: op.Lease, ttl: roundTTL(op.TTL)}, len(",")
	if known {
		added, need = l.marks[i], -len(l.marks[i].append(nil))
	}
	added.spans = withSequence(added.spans, sequenceOf(op.ID))
	if !m.reserveBytes(need + len(added.append(nil))) {
		return false
	}
	if !known {
		l.marks = slices.Insert(l.marks, i, mark{})
	}
	l.marks[i] = added
	return true
}

// withSequence returns spans with one more sequence, which is not in them.
func withSequence(spans []span, seq uint64) []span {
	i := 0
	for i < len(spans) && spans[i].to < seq {
		i++
	}
	out := slices.Insert(slices.Clone(spans), i, span{seq, seq})
	for i = min(i+1, len(out)-1); i > 0; i-- {
		if out[i-1].to+1 == out[i].from {
			out[i-1].to = out[i].to
			out = slices.Delete(out, i, i+1)
		}
	}
	return out
}

func (latchRules) standing(r *Record, op *Op) State {
	l := r.latch()
	switch {
	case op.Life != r.Life:
		return State{Standing: Refused, Why: OtherLife}
	case l.count == 0 && op.Verb == OpAdd:
		return State{Standing: Refused, Why: Forgotten} // if it had a mark, the opening has removed it
	case l.count == 0, l.marked(op):
		return State{Standing: Granted}
	}
	return r.entryState(op.ID)
}

// ahead: a waiter of a latch waits for no entry.
func (latchRules) ahead(*Record, func(string) bool) (iter.Seq2[string, time.Duration], bool) {
	return noLeases, false
}

func (l *latch) fields(f *fields) {
	f.count(`,"count":`, &l.count)
	open := l.count == 0
	f.flag(`,"open":`, &open)
	if l.count == 0 {
		f.need()
	}
	if f.has() && (l.count > 0 || !open) {
		f.fail(f.d.fail("a latch is open or has a count"))
	}
	f.count(`,"initial":`, &l.initial)
	f.need()
	f.number(`,"fenced":`, &l.fenced)
	f.number(`,"shut":`, &l.shut)
	field(f, `,"marks":`, &l.marks, len(l.marks) > 0, appendMarks, (*decoder).marks)
}

func (latchRules) validate(d *decoder) error {
	l := d.rec.latch()
	l.unused = false
	switch {
	case len(d.rec.Holders) > 0:
		return d.fail("a latch has no holders")
	case d.missing:
		return d.fail("a latch needs initial, and count or open")
	case l.count == 0 && len(d.rec.Waiters)+len(l.marks) > 0:
		return d.fail("an open latch has neither waiters nor marks")
	}
	return nil
}

// marks reads {"<lease>":[<ttl>,"1-3,7"], …}.
func (d *decoder) marks() (list []mark, err error) {
	err = d.object(func(key []byte) error {
		mk := mark{lease: string(key)}
		if !validLease(mk.lease) {
			return d.failAt(d.keyAt, "a mark stands under a lease")
		}
		fields := 0
		err := d.array(func() (err error) {
			switch fields++; fields {
			case 1:
				mk.ttl, err = d.ttl()
			case 2:
				mk.spans, err = d.spans()
			default:
				err = d.fail("a mark has a ttl and sequences")
			}
			return err
		})
		if err == nil && fields != 2 {
			err = d.fail("a mark has a ttl and sequences")
		}
		list = append(list, mk)
		return err
	})
	slices.SortFunc(list, func(a, b mark) int { return cmp.Compare(a.lease, b.lease) })
	for i := 1; i < len(list); i++ {
		if list[i-1].lease == list[i].lease {
			return nil, d.fail("a mark stands twice")
		}
	}
	return list, err
}

// spans reads "1-3,7": sorted, and in the shortest form.
func (d *decoder) spans() (spans []span, err error) {
	text, err := d.string()
	if err != nil {
		return nil, err
	}
	for part := range strings.SplitSeq(text, ",") {
		s, ranged, ok := parseSpan(part)
		if !ok {
			return nil, d.fail("sequences are numbers and ranges of them")
		}
		last := len(spans) - 1
		if ranged && s.from >= s.to || last >= 0 && (s.from == 0 || spans[last].to >= s.from-1) {
			return nil, d.fail("sequences are not in order")
		}
		spans = append(spans, s)
	}
	return spans, nil
}

func (l *latch) clone() Body {
	c := *l
	c.marks = slices.Clone(l.marks)
	return &c
}

func appendMarks(dst []byte, marks []mark) []byte {
	return appendList(dst, "{}", len(marks), func(dst []byte, i int) []byte { return marks[i].append(dst) })
}

func (k *mark) append(dst []byte) []byte {
	dst = append(appendString(dst, k.lease), `:[`...)
	dst = appendTTL(dst, k.ttl)
	dst = append(dst, `,"`...)
	for i, s := range k.spans {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = s.append(dst)
	}
	return append(dst, `"]`...)
}

// append appends "FROM", or "FROM-TO".
func (s span) append(dst []byte) []byte {
	dst = appendUint(dst, s.from)
	if s.to > s.from {
		dst = appendUint(append(dst, '-'), s.to)
	}
	return dst
}

// parseSpan is the inverse of append. ranged is whether the text has two numbers.
func parseSpan(text string) (s span, ranged, ok bool) {
	from, to, ranged := strings.Cut(text, "-")
	if !ranged {
		to = from
	}
	return span{sequenceOf(from), sequenceOf(to)}, ranged, validSequence(from) && validSequence(to)
}

func (l *latch) bound(*machine) int {
	longest := latch{count: maxCount, initial: maxCount, fenced: math.MaxUint64, shut: math.MaxUint64, marks: l.marks}
	return len(appendBody(nil, &longest)) + len(`,"marks":{}`)
}

// remove removes the marks of dead leases, and prevents late counts of theirs.
func (l *latch) remove(gone selection, m *machine) {
	had := len(l.marks)
	l.marks = slices.DeleteFunc(l.marks, func(k mark) bool { return gone.leases[k.lease] })
	if len(l.marks) < had {
		l.fenced, m.size = m.rev+1, -1
	}
	if len(l.marks) == 0 {
		l.marks = nil
	}
}
