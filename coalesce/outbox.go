package coalesce

import (
	"strconv"
	"time"

	"github.com/lockfabric/lockfabric/internal/record"
)

// submit sends a call to the term's owner, with others if the window is full. Called with mu held.
func (c *Client) submit(k *call) {
	t := k.term
	t.calls[k.name()] = k
	t.out = append(t.out, k)
}

// send sends what the window lets go. Called with mu held.
func (c *Client) send(t *term) {
	for len(t.out) > 0 && len(t.unacked) < window {
		n := c.fits(t.out)
		calls := t.out[:n:n]
		if t.out = t.out[n:]; len(t.out) == 0 {
			t.out = nil
		}
		c.post(t, calls)
	}
}

// fits returns how many calls go into one frame.
func (c *Client) fits(calls []*call) int {
	limit := min(maxFrame, int(c.cfg.Conn.MaxPayload())/4)
	size := 64
	for i, k := range calls[:min(len(calls), maxOps)] {
		op := &k.op
		size += 96 + len(op.Lease) + len(k.key) + len(op.Owner)
		for name, v := range op.Meta {
			size += len(name) + len(v) + 8
		}
		if size > limit && i > 0 {
			return i
		}
	}
	return min(len(calls), maxOps)
}

// post sends one frame. Called with mu held.
func (c *Client) post(t *term, calls []*call) {
	t.seq++
	f := frame{stamp: c.cfg.Stamp, seq: t.seq, ack: len(t.unacked)+1 == window, items: make([]item, len(calls))}
	for i, k := range calls {
		f.items[i] = k.item
		k.frame = t.seq
		k.sends++
	}
	reply := c.inbox + "f." + strconv.FormatUint(t.id, 10) + "." + strconv.FormatUint(t.seq, 10)
	_ = c.cfg.Conn.PublishRequest(t.subject, reply, f.append(nil)) // an error is silence
	c.stats.Frames++
	c.stats.Operations += uint64(len(calls))
	t.unacked = append(t.unacked, sent{t.seq, time.Now(), calls})
	c.expectReply(c.patience())
}

// patience is how long a frame may be without any answer.
func (c *Client) patience() time.Duration {
	d := c.link.Expect()
	if d == 0 {
		d = firstSilence
	}
	return max(d+receiptAfter, leastSilence, c.least)
}

// expectReply has the owner suspended if the oldest frame gets no answer. Called with mu held.
func (c *Client) expectReply(d time.Duration) {
	if !c.timing {
		c.timing = true
		if c.timer == nil {
			c.timer = time.AfterFunc(d, c.noReply)
		} else {
			c.timer.Reset(d)
		}
	}
}

// noReply is called when the oldest frame may be without an answer for too long.
func (c *Client) noReply() {
	c.mu.Lock()
	defer c.unlock()
	c.timing = false
	t := c.now
	if c.closed || t == nil || len(t.unacked) == 0 {
		return
	}
	if rest := c.patience() - time.Since(t.unacked[0].at); rest > 0 {
		c.expectReply(rest)
		return
	}
	c.suspend(t)
}

// take takes a reply in. Called with mu held.
func (c *Client) take(data []byte) {
	p, err := decodeReply(data)
	t := c.terms[p.term]
	if err != nil || t == nil {
		c.stats.Dropped++
		return
	}
	c.stats.Replies++
	for len(t.unacked) > 0 && t.unacked[0].frame <= p.upto {
		c.link.Observe(time.Since(t.unacked[0].at))
		t.unacked = t.unacked[1:]
	}
	if p.missed.first > 0 {
		c.repeat(t, p.missed)
	}
	over := false
	for i := range p.outcomes {
		o := &p.outcomes[i]
		c.seen = max(c.seen, o.rev)
		k := t.calls[callKey{o.id(), o.release}]
		if k == nil {
			continue // it came twice
		}
		if o.frame != k.frame {
			o.uncertain = true // it was sent again since, and that is on its way
		}
		if o.final() && (o.kind == done || !o.uncertain) {
			delete(t.calls, k.name())
		}
		over = over || o.code == codeNotOwner
		c.router.concluded(k, o)
	}
	if over {
		c.lose(t)
		return
	}
	c.send(t)
}

// repeat sends again what was in frames that the owner will never take. Called with mu held.
func (c *Client) repeat(t *term, missed span) {
	for key, k := range t.calls {
		switch {
		case k.frame < missed.first || k.frame > missed.last:
		case k.wanted():
			k.sends-- // that one was not taken, and never will be
			t.out = append(t.out, k)
		default: // what takes it back may have been taken already
			delete(t.calls, key)
			c.router.concluded(k, &outcome{kind: notDone})
		}
	}
}

// final reports whether nothing more follows for the operation.
func (o *outcome) final() bool { return o.kind != queued && o.kind != turn && o.kind != passed }

// entry is the hold that a grant tells of.
func (o *outcome) entry(op *record.Op) *record.Entry {
	return &record.Entry{
		ID: op.ID, Owner: op.Owner, TTL: op.TTL, Since: op.Since, Token: o.token, Meta: op.Meta,
		Mode: o.mode, Permits: o.permits, Revoked: o.revoked, LetTurn: o.letTurn,
	}
}
