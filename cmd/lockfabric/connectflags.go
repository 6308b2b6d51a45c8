package main

import (
	"cmp"
	"errors"
	"fmt"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/alecthomas/kong"
	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/cmd/lockfabric/internal/natscontext"
)

// connection contains the flags for the server and the credentials. The flags have the names of the nats command. The
// variables have their own names, because variables of other programs must not choose the server of the locks.
//
// The variable of --token is not LOCKFABRIC_TOKEN. This one contains the fencing token under run, and a lockfabric
// inside run would use it as a secret.
type connection struct {
	Server      string `placeholder:"URL" env:"LOCKFABRIC_SERVER" help:"NATS server, or several separated by commas: nats://host:4222. Without it and without --context, a local server is started in the background."`
	Context     string `placeholder:"NAME" env:"LOCKFABRIC_CONTEXT" complete:"context" help:"Context of the nats command with a server and credentials. --server and other credentials given here have priority."`
	Creds       string `placeholder:"FILE" env:"LOCKFABRIC_CREDS" type:"path" help:"File with a user's JWT and key, as written by nsc."`
	NKey        string `name:"nkey" placeholder:"FILE" env:"LOCKFABRIC_NKEY" type:"path" help:"File with a user's nkey seed."`
	User        string `env:"LOCKFABRIC_USER" help:"User name."`
	Password    string `env:"LOCKFABRIC_PASSWORD" help:"Password of --user. Use the environment variable: other users of this host can read command lines."`
	Token       string `env:"LOCKFABRIC_AUTH_TOKEN" help:"Token that the server requires. Use the environment variable."`
	TLSCert     string `name:"tlscert" placeholder:"FILE" env:"LOCKFABRIC_TLSCERT" type:"path" help:"Client certificate for the server."`
	TLSKey      string `name:"tlskey" placeholder:"FILE" env:"LOCKFABRIC_TLSKEY" type:"path" help:"Private key of --tlscert."`
	TLSCA       string `name:"tlsca" placeholder:"FILE" env:"LOCKFABRIC_TLSCA" type:"path" help:"Certificate authorities for the server's certificate, instead of those that this host trusts."`
	TLSFirst    bool   `name:"tlsfirst" env:"LOCKFABRIC_TLSFIRST" help:"Start TLS before the server's greeting, for servers that require this."`
	InboxPrefix string `placeholder:"SUBJECT" env:"LOCKFABRIC_INBOX_PREFIX" help:"Prefix of the reply subjects, instead of _INBOX."`

	flags   []*kong.Flag    // only those of the command
	given   map[string]bool // flags of the command line, without those of the environment
	empty   []string        // of these, flags with an empty text, for example because a variable of a script is not set
	welcome *connWatch      // of the last connection
	once    bool            // prints once which programs the locks of the local server exclude
}

// note stores which flags were given on the command line.
func (c *connection) note(parsed *kong.Context) {
	c.flags, c.given = parsed.Selected().Flags, map[string]bool{}
	for _, p := range parsed.Path {
		if p.Flag != nil && !p.Resolved {
			c.given[p.Flag.Name] = true
			if slices.Contains(connectingFlags, p.Flag.Name) && p.Flag.Target.Kind() == reflect.String && p.Flag.Target.String() == "" {
				c.empty = append(c.empty, "--"+p.Flag.Name)
			}
		}
	}
}

// checkRanges checks the numbers and durations of the command line against the tags of their flags: from and to are the
// bounds, and give is the advice if it is not "FROM to TO".
func (c *connection) checkRanges(command string) error {
	bound := func(text string) int64 {
		d, err := time.ParseDuration(text)
		if err != nil {
			n, _ := strconv.Atoi(text)
			return int64(n)
		}
		return int64(d)
	}
	for _, f := range c.flags {
		from, to := f.Tag.Get("from"), f.Tag.Get("to")
		if from == "" || !c.given[f.Name] {
			continue
		}
		if v := reflect.Indirect(f.Target); v.Int() < bound(from) || to != "" && v.Int() > bound(to) {
			return usageError("%s --%s=%v: give %s", command, f.Name, v.Interface(), cmp.Or(f.Tag.Get("give"), from+" to "+to))
		}
	}
	return nil
}

var connectingFlags = []string{"server", "context", "creds", "nkey", "user", "password", "token", "tlscert", "tlskey", "tlsca", "tlsfirst", "inbox-prefix"}

type target struct {
	servers string // for nats.Connect
	origin  string // where the server was given, for messages
	who     string // the credentials, for messages
	setup   natscontext.Settings
	options []nats.Option
	secrets natscontext.Secrets
}

// target returns the server of flags, environment and context, or nil for the local server. Every error is a usage
// error.
func (c *connection) target() (*target, error) {
	if len(c.empty) > 0 {
		return nil, usageError("%s is empty: give a value, or leave it out", c.empty[0])
	}
	server, name := c.Server, c.Context
	// The command line has priority: a server of the environment must not replace a context of the command line, or the
	// other way round.
	if c.given["context"] && !c.given["server"] {
		server = ""
	}
	if c.given["server"] && !c.given["context"] {
		name = ""
	}
	own, err := c.settings()
	if err != nil {
		return nil, err
	}
	if flags := own.Flags(); server+name == "" && len(flags) > 0 {
		return nil, usageError("%s given, but no server: name it with --server or --context; the local server needs none of these",
			strings.Join(flags, ", "))
	}
	if server+name == "" {
		return nil, nil
	}
	t := &target{origin: "--server"}
	if name != "" {
		loaded, err := natscontext.Load(name)
		if err != nil {
			return nil, usageError("%w", err)
		}
		t.setup, t.origin = loaded, fmt.Sprintf("context %q", name)
	}
	if server != "" {
		t.setup.URL, t.origin = server, "--server"
	}
	if err := t.merge(own, server != "", name); err != nil {
		return nil, err
	}
	return t, t.prepare()
}

// prepare converts the setup to options of the client, and collects the secrets.
func (t *target) prepare() (err error) {
	if t.options, t.secrets, err = t.setup.Options(); err != nil {
		return usageError("%w", err)
	}
	t.secrets.AddURLs(t.servers)
	return nil
}

// settings returns the settings of flags and environment. Credentials on the command line replace others of the
// environment.
func (c *connection) settings() (natscontext.Settings, error) {
	s := natscontext.Settings{
		Creds: c.Creds, NKey: c.NKey, User: c.User, Password: c.Password, Token: c.Token,
		Cert: c.TLSCert, Key: c.TLSKey, CA: c.TLSCA, TLSFirst: c.TLSFirst, InboxPrefix: c.InboxPrefix,
		FromFlags: true,
	}
	user := c.given["user"] || c.given["password"]
	if user || c.given["creds"] || c.given["nkey"] || c.given["token"] {
		for field, given := range map[*string]bool{
			&s.Creds: c.given["creds"], &s.NKey: c.given["nkey"], &s.Token: c.given["token"], &s.User: user, &s.Password: user,
		} {
			if !given {
				*field = ""
			}
		}
	}
	switch {
	case s.User == "" && s.Password != "":
		return s, usageError("--password (LOCKFABRIC_PASSWORD) without --user: name the user it is of")
	case s.User != "" && s.Password == "":
		return s, usageError("--user without a password: give it as LOCKFABRIC_PASSWORD; a lone token is for --token (LOCKFABRIC_AUTH_TOKEN)")
	case (s.Cert == "") != (s.Key == ""):
		return s, usageError("--tlscert and --tlskey belong together: give both")
	}
	if kinds := s.Kinds(); len(kinds) > 1 {
		return s, usageError("%s contradict each other: give one of them, here or in the environment", strings.Join(kinds, " and "))
	}
	return s, nil
}

// merge combines the settings of flags and environment with those of the context, and with the credentials in URLs.
func (t *target) merge(own natscontext.Settings, explicit bool, context string) error {
	urls, inURL, err := parseServers(t.setup.URL, t.origin)
	if err != nil {
		return err
	}
	t.servers = joined(urls, true)
	kinds := own.Kinds()
	switch {
	case len(kinds) > 0 && inURL && explicit:
		return usageError("--server has credentials in it, which contradict %s: give one of them", kinds[0])
	case len(kinds) > 0:
		t.setup.Forget()
		t.setup.Creds, t.setup.NKey, t.setup.User, t.setup.Password, t.setup.Token = own.Creds, own.NKey, own.User, own.Password, own.Token
		t.servers = joined(urls, false)
		t.who = kinds[0]
	case inURL && explicit:
		t.setup.Forget()
		t.who = "the credentials in --server"
	default:
		kinds = t.setup.Kinds()
		if inURL {
			kinds = append(kinds, "the URL's user")
		}
		if len(kinds) > 1 {
			return usageError("context %q has several kinds of credentials, %s: leave one, or give others with flags", context, strings.Join(kinds, " and "))
		}
		if len(kinds) == 1 {
			t.who = fmt.Sprintf("the credentials of context %q", context)
		}
	}
	t.setup.FromFlags = t.setup.FromFlags || len(own.Kinds()) > 0
	if own.Cert != "" {
		t.setup.Cert, t.setup.Key = own.Cert, own.Key
	}
	t.setup.CA = cmp.Or(own.CA, t.setup.CA)
	t.setup.TLSFirst = t.setup.TLSFirst || own.TLSFirst
	t.setup.InboxPrefix = cmp.Or(own.InboxPrefix, t.setup.InboxPrefix)
	return nil
}

func joined(urls []*url.URL, credentials bool) string {
	list := make([]string, len(urls))
	for i, u := range urls {
		if !credentials {
			u.User = nil
		}
		list[i] = u.String()
	}
	return strings.Join(list, ",")
}

// parseServers parses a list of URLs. Its errors contain no part of the URLs, which could be a password.
func parseServers(list, origin string) (urls []*url.URL, credentials bool, err error) {
	for one := range strings.SplitSeq(list, ",") {
		if one = strings.TrimSpace(one); one == "" {
			continue
		}
		if !strings.Contains(one, "://") {
			one = "nats://" + one
		}
		u, err := url.Parse(one)
		if err == nil && (u.Host == "" || u.Fragment != "" || u.RawQuery != "" || u.User == nil && strings.Contains(one, "@")) {
			err = errors.New("not a server")
		}
		if err != nil {
			return nil, false, usageError("check %s: URL %d can't be read: write nats://HOST:PORT, and special characters of a user or a password before it as %%XX",
				origin, len(urls)+1)
		}
		credentials = credentials || u.User != nil
		urls = append(urls, u)
	}
	if len(urls) == 0 {
		return nil, false, usageError("check %s: it names no server: write nats://HOST:PORT", origin)
	}
	return urls, credentials, nil
}

// hideArgs removes values of secret flags from the parser's message, which can quote them as flags.
func hideArgs(text string, args []string) string {
	for i, arg := range args {
		flag, value, ok := strings.Cut(arg, "=")
		if !ok && i+1 < len(args) {
			value = args[i+1]
		}
		switch flag {
		case "--password", "--token", "--server", "--creds", "--nkey":
			for _, form := range []string{strings.Trim(strconv.Quote(value), `"`), value} {
				text = hideWord(text, form)
			}
		}
	}
	return text
}

// hideWord masks a secret if no letter or digit is directly before or after it.
func hideWord(text, secret string) string {
	if secret == "" {
		return text
	}
	if !utf8.ValidString(secret) { // it is no regular expression
		return strings.ReplaceAll(text, secret, "xxxxx")
	}
	word := regexp.MustCompile(`(^|[^\pL\p{Nd}])` + regexp.QuoteMeta(secret) + `($|[^\pL\p{Nd}])`)
	for range 2 { // two secrets can have the same character between them
		text = word.ReplaceAllString(text, "${1}xxxxx${2}")
	}
	return text
}
