package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/primitives"
)

type electCmd struct {
	Name    string   `arg:"" complete:"lock" help:"Name of the election."`
	Command []string `arg:"" optional:"" name:"cmd" passthrough:"partial" help:"Command to run while this process leads, or with --observe after each change of the leader; put it after '--'."`
	Value   *string  `placeholder:"TEXT" help:"Value of the leader that others see, for example its address; at most 1 KiB. Default: the name of this host."`
	Observe bool     `help:"Don't campaign: print each leader as a line, until interrupted."`
	claiming
	holding
}

const maxValue = 1024 // maximum size of a candidate's value, in bytes

func (e *electCmd) Run(ctx context.Context, c *cli, s *streams) error {
	e.Command = afterDashes(e.Command)
	if err := e.validate(); err != nil {
		return err
	}
	if e.Observe {
		return e.observe(ctx, c, s)
	}
	e.NoProgress = e.NoProgress || e.Quiet
	t := &task{holding: &e.holding, name: "elect", key: e.Name, command: e.Command, acquire: e.campaign, advice: e.advice}
	return e.conflict(t.run(ctx, c, s))
}

func (e *electCmd) validate() error {
	if e.Observe {
		for flag, given := range map[string]bool{"wait": e.Wait != nil, "value": e.Value != nil, "owner": e.Owner != "", "meta": len(e.Meta) > 0} {
			if given {
				return usageError("elect --observe stands for nothing: leave out --%s", flag)
			}
		}
	}
	if e.Value != nil && len(*e.Value) > maxValue {
		return usageError("elect --value of %d bytes: use at most %d", len(*e.Value), maxValue)
	}
	if e.Observe && len(e.Command) == 0 {
		return checkName(e.Name)
	}
	return cmp.Or(checkCommand("elect", e.Command), checkName(e.Name))
}

func (e *electCmd) campaign(ctx context.Context, m *fabric.Manager) (held, error) {
	value, _ := os.Hostname()
	if e.Value != nil {
		value = *e.Value
	}
	c := fabric.Claim{Kind: fabric.KindLock, Mode: fabric.Exclusive, Value: append([]byte{}, value...)}
	h, err := e.claim(ctx, m, e.Name, c, fabric.WithMetadata(e.Meta))
	if err != nil {
		err = &reworded{err, strings.Replace(err.Error(), " not acquired: ", " not elected: ", 1)}
	}
	return h, err
}

// leading is the JSON of one line of elect --observe.
type leading struct {
	Time  time.Time `json:"time"`            // when it was seen, by the clock of this host
	Term  uint64    `json:"term,string"`     // 0 = no leader
	Owner string    `json:"owner,omitempty"` // explicit owner, or the id of the hold
	Value *string   `json:"value,omitempty"` // the leader's value
	Data  []byte    `json:"data,omitempty"`  // the leader's value, if it is not text
}

func (e *electCmd) observe(ctx context.Context, c *cli, s *streams) error {
	until := c.untilInterrupted
	if len(e.Command) == 0 {
		until = c.whileRead
	}
	return until(ctx, s, func(ctx context.Context, m *fabric.Manager) error {
		for l, err := range primitives.NewElection(m, e.Name).Observe(ctx) {
			switch {
			case err != nil:
			case len(e.Command) > 0:
				var enough bool
				if enough, err = e.tell(ctx, s, l); enough {
					return nil
				}
			default:
				err = s.printLeader(c.Output, l)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

func (s *streams) printLeader(format string, l primitives.Leader) error {
	if format == "json" {
		v := leading{Time: time.Now(), Term: l.Term, Owner: l.Owner}
		if text := string(l.Value); l.Value != nil && utf8.Valid(l.Value) {
			v.Value = &text
		} else {
			v.Data = l.Value
		}
		return s.encode(v, "")
	}
	value := "-"
	if l.Term != 0 {
		value = printable(string(l.Value))
	}
	_, err := fmt.Fprintf(s.out, "%d %s\n", l.Term, value)
	return writeError(err)
}

// tell runs the command for one leader. A signal that ends this program is also sent to the command. While the command
// has the terminal, ^C goes to the command only; it then also ends this program, and enough is true.
func (e *electCmd) tell(ctx context.Context, s *streams, l primitives.Leader) (enough bool, err error) {
	path, err := exec.LookPath(e.Command[0])
	if err != nil {
		return false, cannotRun(e.Command[0], err)
	}
	sigs := make(chan os.Signal, 64)
	defer signal.Stop(sigs)
	value, _, _ := strings.Cut(string(l.Value), "\x00") // a variable can't contain the rest
	v := &supervisor{held: noHold{}, sigs: sigs, killAfter: e.KillAfter, log: s.log}
	code, err := v.run(childOf(path, e.Command, "LOCKFABRIC_KEY="+e.Name,
		"LOCKFABRIC_LEADER_TERM="+strconv.FormatUint(l.Term, 10), "LOCKFABRIC_LEADER_VALUE="+value))
	switch {
	case err != nil:
		return false, cannotRun(e.Command[0], err)
	case code != 0 && ctx.Err() == nil && !v.typed:
		s.log.Warn("the command failed", "command", e.Command[0], "exit_code", code, "term", l.Term)
	}
	return v.typed, nil
}

// noHold is a hold of nothing; it is never lost.
type noHold struct{ held }

func (noHold) Err() error            { return nil }
func (noHold) Lost() <-chan struct{} { return nil }
