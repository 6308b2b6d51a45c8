package doctor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/nats-io/nats.go"
)

// userInfo is where a server tells a user about themselves.
const userInfo = "$SYS.REQ.USER.INFO"

type rights struct {
	known      bool
	pub, sub   permission
	restricted bool
}

// permission is one direction. Without an allow list everything is allowed that
// is not denied.
type permission struct {
	Allow []string `json:"allow"`
	Deny  []string `json:"deny"`
}

// allows reports whether all of a subject pattern is allowed.
func (p permission) allows(pattern string) bool {
	for _, d := range p.Deny {
		d, _, _ = strings.Cut(d, " ") // of a subscription in a queue
		if overlap(d, pattern) {
			return false
		}
	}
	for _, a := range p.Allow {
		if covers(a, pattern) {
			return true
		}
	}
	return len(p.Allow) == 0
}

func (r *rights) allow(n need) bool {
	if !r.restricted {
		return true
	}
	if n.Subscribe {
		return r.sub.allows(n.Subject)
	}
	return r.pub.allows(n.Subject)
}

func (r *rights) lacks(pattern string) bool { return r.known && r.restricted && !r.pub.allows(pattern) }

func (e *exam) permissions(ctx context.Context) {
	err := e.step(ctx, func(ctx context.Context) error {
		reply, err := e.nc.RequestWithContext(ctx, userInfo, nil)
		if err != nil {
			return err
		}
		return e.rights.read(reply.Data)
	})
	if err != nil {
		why := err.Error()
		switch {
		case notAllowed(err):
			why = "this user may not ask"
		case errors.Is(err, nats.ErrNoResponders), errors.Is(err, context.DeadlineExceeded):
			why = "the server does not tell"
		}
		e.report.unknown(checkPermissions, "", why, fmt.Sprintf("allow the user to publish %q, or see under the other checks what could not be read", userInfo))
		return
	}
	missing := 0
	for _, n := range e.needs {
		if e.rights.allow(n) {
			continue
		}
		missing++
		detail, remedy := fmt.Sprintf("not allowed: %s, for %s", n, n.Why), "allow the user to "+n.String()
		if n.Helpful {
			e.report.warn(checkPermissions, n.Subject, detail, remedy)
		} else {
			e.report.problem(checkPermissions, n.Subject, detail, remedy)
		}
	}
	if missing == 0 {
		e.report.ok(checkPermissions, "", "the user may do all that locks need")
	}
}

// read takes the server's answer. A user without restrictions has none in it.
func (r *rights) read(data []byte) error {
	var answer struct {
		Data *struct {
			Permissions *struct {
				Publish   permission `json:"publish"`
				Subscribe permission `json:"subscribe"`
			} `json:"permissions"`
		} `json:"data"`
	}
	if err := json.Unmarshal(data, &answer); err != nil {
		return fmt.Errorf("the server's answer can't be read: %w", err)
	}
	if answer.Data == nil {
		return errors.New("the server's answer is empty")
	}
	r.known = true
	if p := answer.Data.Permissions; p != nil {
		r.restricted, r.pub, r.sub = true, p.Publish, p.Subscribe
	}
	return nil
}

// covers reports whether every subject of pattern is one of wide.
func covers(wide, pattern string) bool {
	w, p := strings.Split(wide, "."), strings.Split(pattern, ".")
	for i, t := range w {
		switch {
		case i >= len(p):
			return false
		case t == ">":
			return true
		case p[i] == ">", t != "*" && t != p[i]:
			return false
		}
	}
	return len(w) == len(p)
}

// overlap reports whether some subject belongs to both patterns.
func overlap(a, b string) bool {
	x, y := strings.Split(a, "."), strings.Split(b, ".")
	for i := range min(len(x), len(y)) {
		switch {
		case x[i] == ">" || y[i] == ">":
			return true
		case x[i] != y[i] && x[i] != "*" && y[i] != "*":
			return false
		}
	}
	return len(x) == len(y)
}
