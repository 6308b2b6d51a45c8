package coalesce

import (
	"strconv"
	"time"

	"github.com/lockfabric/lockfabric/internal/record"
)

// submit adds a call to those that go to the term's owner in the next frames. Called with mu held.
func (c *Client) submit(k *call) {
	t := k.term
	t.calls[k.name()] = k
	t.unsent = append(t.unsent, k)
}

// send sends as many frames as the window allows. Called with mu held.
func (c *Client) send(t *term) {
	for len(t.unsent) > 0 && len(t.unacked) < window {
		n := c.callsPerFrame(t.unsent)
		calls := t.unsent[:n:n]
		if t.unsent = t.unsent[n:]; len(t.unsent) == 0 {
			t.unsent = nil
		}
		c.sendFrame(t, calls)
	}
}

// callsPerFrame returns how many of the calls go into one frame.
func (c *Client) callsPerFrame(calls []*call) int {
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

// sendFrame sends one frame. Called with mu held.
func (c *Client) sendFrame(t *term, calls []*call) {
	t.seq++
	f := frame{stamp: c.cfg.Stamp, seq: t.seq, ack: len(t.unacked)+1 == window, items: make([]item, len(calls))}
	for i, k := range calls {
		f.items[i] = k.item
		k.frame = t.seq
		k.sends++
	}
	reply := c.inbox + "f." + strconv.FormatUint(t.id, 10) + "." + strconv.FormatUint(t.seq, 10)
	_ = c.cfg.Conn.PublishRequest(t.subject, reply, f.append(nil)) // after an error the reply does not come: silenceLimit covers it
	c.stats.Frames++
	c.stats.Operations += uint64(len(calls))
	t.unacked = append(t.unacked, sentFrame{t.seq, time.Now(), calls})
	c.armReplyTimer(c.silenceLimit())
}

// silenceLimit returns how long a client waits for the acknowledgement of a frame before it suspends the owner.
func (c *Client) silenceLimit() time.Duration {
	d := c.link.Expect()
	if d == 0 {
		d = firstSilence
	}
	return max(d+receiptAfter, leastSilence, c.minSilence)
}

// armReplyTimer starts the timer of onReplyTimeout, if it is not running. Called with mu held.
func (c *Client) armReplyTimer(d time.Duration) {
	if !c.timerRunning {
		c.timerRunning = true
		if c.replyTimer == nil {
			c.replyTimer = time.AfterFunc(d, c.onReplyTimeout)
		} else {
			c.replyTimer.Reset(d)
		}
	}
}

// onReplyTimeout suspends the owner if the oldest frame has had no acknowledgement within silenceLimit.
func (c *Client) onReplyTimeout() {
	c.mu.Lock()
	defer c.unlock()
	c.timerRunning = false
	t := c.current
	if c.closed || t == nil || len(t.unacked) == 0 {
		return
	}
	if rest := c.silenceLimit() - time.Since(t.unacked[0].at); rest > 0 {
		c.armReplyTimer(rest)
		return
	}
	c.suspend(t)
}

// takeReply handles a reply. Called with mu held.
func (c *Client) takeReply(data []byte) {
	p, err := decodeReply(data)
	t := c.terms[p.term]
	if err != nil || t == nil {
		c.stats.Dropped++
		return
	}
	c.stats.Replies++
	for len(t.late) > 0 && t.late[0].frame <= p.upto { // so that a busy owner, or a busy process, is given more time
		c.link.Observe(min(time.Since(t.late[0].at), helloSilence))
		t.late = t.late[1:]
	}
	for len(t.unacked) > 0 && t.unacked[0].frame <= p.upto {
		c.link.Observe(time.Since(t.unacked[0].at))
		t.unacked = t.unacked[1:]
	}
	if p.missed.first > 0 {
		c.resend(t, p.missed)
	}
	over := false
	for i := range p.outcomes {
		o := &p.outcomes[i]
		c.newestRev = max(c.newestRev, o.rev)
		k := t.calls[callKey{o.id(), o.release}]
		if k == nil {
			continue // a repeated outcome
		}
		if o.frame != k.frame {
			o.uncertain = true // the operation was sent again since, and that frame may still be under way
		}
		if o.final() && (o.kind == done || !o.uncertain) {
			delete(t.calls, k.name())
		}
		over = over || o.code == codeNotOwner
		c.router.ownerAnswered(k, o)
	}
	if over {
		c.loseOwner(t)
		return
	}
	c.send(t)
}

// resend queues the calls again whose frames the owner has missed and will never take. Called with mu held.
func (c *Client) resend(t *term, missed span) {
	var again []*call
	for _, k := range t.inOrder() {
		switch {
		case k.frame < missed.first || k.frame > missed.last:
		case k.shouldResend():
			k.sends-- // the owner did not take this one and never will
			again = append(again, k)
		default: // its undo may already have been taken
			delete(t.calls, k.name())
			c.router.ownerAnswered(k, &outcome{kind: notDone})
		}
	}
	t.unsent = append(again, t.unsent...)
}

// final reports whether no further outcome follows for the operation.
func (o *outcome) final() bool { return o.kind != queued && o.kind != turnCame && o.kind != turnPassed }

// entry returns the hold of a grant.
func (o *outcome) entry(op *record.Op) *record.Entry {
	return &record.Entry{
		ID: op.ID, Owner: op.Owner, TTL: op.TTL, Since: op.Since, Token: o.token, Meta: op.Meta,
		Mode: o.mode, Permits: o.permits, Revoked: o.revoked, LetTurn: o.letTurn,
	}
}
