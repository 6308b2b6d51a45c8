// Shared has readers and a writer of one lock. Readers read at the same time, and the writer writes alone.
//
// First the writer acquires the lock in mode Update: it can read at the same time as the readers, and no other process
// can hold Update. When it knows what to write, it converts the hold to Exclusive. The conversion waits until the
// readers have released the lock, and no new readers are granted in the meantime. After the write it converts the hold
// to Shared: it continues to read, other readers can be granted, and no other process can write in between.
//
// Readers and the writer are separate processes, which this program starts by starting itself with -role. It needs no
// installed server: without -server they use a server in the first process. With -server and -role, they can run on
// different hosts.
package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"time"

	"github.com/lockfabric/lockfabric/examples/internal/demo"
	"github.com/lockfabric/lockfabric/fabric"
)

const key = "catalogue"

func main() {
	server := flag.String("server", "", "NATS URL; without it a server is embedded")
	role := flag.String("role", "", "reader or writer; without it three readers and a writer are started")
	name := flag.String("name", "", "name in what is printed, in place of the role")
	work := flag.Duration("work", 500*time.Millisecond, "how long one looks, or writes")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Stdout, *server, *role, cmp.Or(*name, *role), *work)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "shared:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out io.Writer, server, role, name string, work time.Duration) error {
	switch role {
	case "":
		return start(ctx, out, server, work)
	case "reader", "writer":
	default:
		return fmt.Errorf("role %q: use reader or writer", role)
	}
	m, closeAll, err := demo.Connect(ctx, server)
	if err != nil {
		return err
	}
	defer closeAll()
	p := &program{m: m, out: out, name: name, work: work}
	if role == "reader" {
		return p.read(ctx)
	}
	return p.write(ctx)
}

// start starts three readers and a writer, and checks what they print.
func start(ctx context.Context, out io.Writer, server string, work time.Duration) error {
	server, stop, err := demo.Serve(ctx, server)
	if err != nil {
		return err
	}
	defer stop()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	r, w, err := os.Pipe() // one pipe for all, so lines come in the order in which they were written
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	var started []*exec.Cmd
	for _, name := range []string{"reader 1", "reader 2", "reader 3", "writer"} {
		role, _, _ := strings.Cut(name, " ")
		cmd := exec.CommandContext(ctx, self, "-server", server, "-role", role, "-name", name, "-work", work.String())
		cmd.Stdout, cmd.Stderr = w, os.Stderr
		if err = cmd.Start(); err != nil {
			break
		}
		started = append(started, cmd)
	}
	_ = w.Close()
	last, alone := "", true
	for lines := bufio.NewScanner(r); lines.Scan(); last = lines.Text() {
		fmt.Fprintln(out, lines.Text())
		alone = alone && (last != "writer: writes alone" || lines.Text() == "writer: has written")
	}
	for _, cmd := range started {
		err = errors.Join(err, cmd.Wait())
	}
	if !alone {
		err = errors.Join(err, errors.New("somebody read while the writer wrote"))
	}
	return err
}

// program contains what readers and the writer have in common.
type program struct {
	m    *fabric.Manager
	out  io.Writer
	name string
	work time.Duration
}

func (p *program) say(what string) { fmt.Fprintf(p.out, "%s: %s\n", p.name, what) }

// busy works, but stops when the hold is lost or the program must end.
func (p *program) busy(ctx context.Context, l *fabric.Lock) error {
	select {
	case <-time.After(p.work):
		return nil
	case <-l.Lost():
		return l.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// read reads twice, with its own lock in mode Shared.
func (p *program) read(ctx context.Context) error {
	for range 2 {
		err := p.m.Do(ctx, key, func(ctx context.Context, l *fabric.Lock) error {
			p.say("reads")
			return p.busy(ctx, l)
		}, fabric.WithMode(fabric.Shared))
		if err != nil {
			return err
		}
	}
	return nil
}

func (p *program) write(ctx context.Context) error {
	lock, err := p.m.Acquire(ctx, key, fabric.WithMode(fabric.Update))
	if err != nil {
		return err
	}
	defer func() { _ = lock.Release(ctx) }()
	p.say("reads, and may want to write")
	if err := p.busy(ctx, lock); err != nil {
		return err
	}

	if err := lock.Convert(ctx, fabric.Exclusive); err != nil {
		return err
	}
	p.say("writes alone") // with the new token: lock.Token()
	if err := p.busy(ctx, lock); err != nil {
		return err
	}
	p.say("has written")

	if err := lock.Convert(ctx, fabric.Shared); err != nil {
		return err
	}
	return p.busy(ctx, lock)
}
