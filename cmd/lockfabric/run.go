package main

import (
	"cmp"
	"context"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/kv"
)

type runCmd struct {
	Key       string   `arg:"" complete:"lock" help:"Name of the lock or semaphore; '/' separates levels."`
	Command   []string `arg:"" optional:"" name:"cmd" passthrough:"partial" help:"Command to run, best after '--', with its arguments; flags of lockfabric stand before it."`
	Line      string   `name:"command" short:"c" placeholder:"LINE" complete:"-" help:"Run this line with 'sh -c' in place of CMD."`
	Mode      string   `xor:"mode" placeholder:"IS|IX|S|SIX|U|X" complete:"IS,IX,S,SIX,U,X" help:"What else may be held beside it: X, the default, excludes all others, S those who write, U all but S and IS; IS, IX and SIX announce locks on parts."`
	Shared    bool     `xor:"mode" help:"The same as --mode S: hold the lock together with others who do so, too."`
	Semaphore *int     `xor:"mode" placeholder:"N" complete:"-" help:"Hold a permit of a semaphore with N permits instead of a lock. All who use the name have to give the same N."`
	Permits   int      `default:"1" placeholder:"K" complete:"-" help:"How many permits of --semaphore to hold."`
	several
	DeadlineCheck bool `help:"Don't queue, exit with 75 at once, when the wait is expected to last longer than --wait. Nothing is expected of a lock that nobody has waited for."`
	claiming
	holding
	staying
}

func (*runCmd) Help() string {
	return "CMD gets LOCKFABRIC_KEY and LOCKFABRIC_TOKEN, the fencing token, in its environment, and with --also, --path and --under LOCKFABRIC_TOKENS, a JSON object of all names and tokens. Signals are passed on to its process group. " +
		"If the lock or the permit is lost the group gets SIGTERM, and SIGKILL after --kill-after.\n\n" +
		"What CMD leaves in the background does not keep the lock: others can have it while that is at work. With --wait-children it does. " +
		"For a job that many hosts start at the same time, of which one is to run, give --wait 0 and a --hold-at-least that is longer than their clocks differ. " +
		"SIGINT and SIGTERM that run gets end CMD and that time; the exit code is CMD's all the same.\n\n" +
		"Exit code: CMD's own, or 128+n when signal n ended it; 75, or that of --conflict-exit-code: not acquired, others hold it; 76: the lock or the permit was lost while CMD ran; " +
		"77: the server refuses the credentials; 69: no server; 65: the name is something else, or a semaphore of another size; 64: usage; " +
		"126, 127: CMD can't be run, not found; 70: a defect."
}

func (r *runCmd) Run(ctx context.Context, c *cli, s *streams) error {
	r.Command = afterDashes(r.Command)
	if r.Line != "" && len(r.Command) == 0 {
		r.Command = []string{"sh", "-c", r.Line}
	} else if r.Line != "" {
		return usageError("run --command: that is what is run: leave out the command at the end")
	}
	if err := r.validate(); err != nil {
		return err
	}
	r.NoProgress = r.NoProgress || r.Quiet
	t := &task{holding: &r.holding, staying: r.staying, name: "run", key: r.Key, command: r.Command, acquire: r.acquire, advice: r.advice}
	return r.conflict(t.run(ctx, c, s))
}

func (r *runCmd) validate() error {
	limit := r.limit()
	switch {
	case r.DeadlineCheck && (r.Wait == nil || *r.Wait == 0):
		return usageError("run --deadline-check: give the time that is to be kept with --wait")
	case r.Semaphore != nil && limit < 1:
		return usageError("run --semaphore=%d: give 1 or more", limit)
	case r.Permits < 1 || limit > 0 && r.Permits > limit:
		return usageError("run --permits=%d: give 1 to the number of --semaphore", r.Permits)
	case r.Permits > 1 && limit == 0:
		return usageError("run --permits=%d: say with --semaphore how many there are", r.Permits)
	case r.DeadlineCheck && limit > 0:
		return usageError("run --deadline-check: nothing is expected of a semaphore; leave it out")
	}
	return cmp.Or(r.several.validate(limit > 0), checkMode("run", r.Mode), checkCommand("run", r.Command), r.claiming.validate("run"), r.holding.validate("run"), r.staying.validate("run"), checkName(r.Key))
}

// limit is how many permits the semaphore has, 0 without one.
func (r *runCmd) limit() int {
	if r.Semaphore == nil {
		return 0
	}
	return *r.Semaphore
}

// checkName refuses a name that nothing can have, before any server is asked.
func checkName(key string) error {
	_, err := kv.EncodeName(key)
	return err
}

func (r *runCmd) acquire(ctx context.Context, m *fabric.Manager) (held, error) {
	c := fabric.Claim{Kind: fabric.KindLock, Mode: lockMode(r.Mode, r.Shared)}
	if limit := r.limit(); limit > 0 {
		c = fabric.Claim{Kind: fabric.KindSemaphore, Permits: r.Permits, Limit: limit}
	}
	opts := []fabric.AcquireOption{fabric.WithMetadata(r.Meta)}
	if r.DeadlineCheck {
		opts = append(opts, fabric.WithDeadlineCheck())
	}
	if r.several.given() {
		return r.claiming.ask(ctx, r.several.acquire(m, r.Key, c.Mode), opts...)
	}
	return r.claim(ctx, m, r.Key, c, opts...)
}
