package faultproxy

import (
	"context"
	"fmt"
	"strings"
	"sync"
)

// Match says whether a rule applies to a message. The header is the raw block,
// nil without one. It is called for one message at a time; it must not call the
// proxy or keep the slices.
type Match func(subject string, header, payload []byte) bool

// Subject matches messages whose subject fits a pattern with the wildcards of
// NATS, such as "$KV.locks.>".
func Subject(pattern string) Match {
	want := strings.Split(pattern, ".")
	return func(subject string, _, _ []byte) bool {
		have := strings.Split(subject, ".")
		for i, w := range want {
			switch {
			case w == ">":
				return len(have) > i
			case i >= len(have) || (w != "*" && w != have[i]):
				return false
			}
		}
		return len(have) == len(want)
	}
}

// Times matches the first n messages that match does, and none after.
func Times(n int, match Match) Match {
	return func(subject string, header, payload []byte) bool {
		if n <= 0 || !match(subject, header, payload) {
			return false
		}
		n--
		return true
	}
}

type action int

const (
	drop action = iota
	duplicate
	hold
	dropReplies
)

// Rule is one active fault. It acts from its creation until Remove.
type Rule struct {
	set    *ruleSet
	action action
	match  Match

	// Guarded by set.mu.
	matched int
	changed chan struct{}   // closed and replaced when matched grows
	inboxes map[string]bool // reply subjects to silence, for dropReplies
	held    []heldFrame     // for hold
}

type heldFrame struct {
	conn  *conn
	frame *frame
}

// ruleSet keeps the rules of a proxy by direction, in the order of their creation.
type ruleSet struct {
	mu       sync.Mutex
	requests []*Rule
	replies  []*Rule
}

func (s *ruleSet) add(list *[]*Rule, a action, match Match) *Rule {
	r := &Rule{set: s, action: a, match: match, changed: make(chan struct{}), inboxes: make(map[string]bool)}
	s.mu.Lock()
	defer s.mu.Unlock()
	*list = append(*list, r)
	return r
}

// request returns how often a message from a client is sent on: 0, 1 or 2 times.
func (s *ruleSet) request(c *conn, f *frame) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.requests {
		if !r.match(f.subject, f.header, f.payload) {
			continue
		}
		if r.action == dropReplies && f.reply == "" {
			continue // the client expects no answer
		}
		r.hit()
		switch r.action {
		case drop:
			return 0
		case duplicate:
			return 2
		case hold:
			r.held = append(r.held, heldFrame{conn: c, frame: f})
			return 0
		case dropReplies:
			r.inboxes[f.reply] = true
			return 1
		}
	}
	return 1
}

// reply does the same for a message from the server.
func (s *ruleSet) reply(f *frame) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.requests {
		if r.inboxes[f.subject] {
			return 0
		}
	}
	for _, r := range s.replies {
		if !r.match(f.subject, f.header, f.payload) {
			continue
		}
		r.hit()
		if r.action == duplicate {
			return 2
		}
		return 0
	}
	return 1
}

func (r *Rule) hit() {
	r.matched++
	close(r.changed)
	r.changed = make(chan struct{})
}

// Count returns how many messages the rule has matched; for DropRepliesTo,
// requests.
func (r *Rule) Count() int {
	r.set.mu.Lock()
	defer r.set.mu.Unlock()
	return r.matched
}

// Wait returns when the rule has matched at least n messages, or with ctx's
// cause.
func (r *Rule) Wait(ctx context.Context, n int) error {
	for {
		r.set.mu.Lock()
		got, changed := r.matched, r.changed
		r.set.mu.Unlock()
		if got >= n {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("faultproxy: rule matched %d of %d messages: %w", got, n, context.Cause(ctx))
		}
	}
}

// Remove ends the rule. Messages that it holds stay held until Release. Replies
// that it still waited for pass.
func (r *Rule) Remove() {
	r.set.mu.Lock()
	defer r.set.mu.Unlock()
	r.set.requests = without(r.set.requests, r)
	r.set.replies = without(r.set.replies, r)
}

func without(list []*Rule, r *Rule) []*Rule {
	var out []*Rule
	for _, x := range list {
		if x != r {
			out = append(out, x)
		}
	}
	return out
}

// Release removes a rule made by HoldRequests and delivers the messages that it holds, in
// order, each on the connection on which it came. If that connection is gone, Release makes a
// new one for the message, as if the message had
// been under way all the time. In this way a write commits after its client has
// given up. In that case Release returns after the server has taken the message. A second
// Release does nothing.
func (r *Rule) Release() error {
	r.Remove()
	r.set.mu.Lock()
	held := r.held
	r.held = nil
	r.set.mu.Unlock()
	for _, h := range held {
		if h.conn.up.push(h.frame) {
			continue
		}
		if err := h.conn.inject(h.frame); err != nil {
			return fmt.Errorf("faultproxy: late delivery on %q: %w", h.frame.subject, err)
		}
	}
	return nil
}
