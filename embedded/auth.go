package embedded

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"

	natsserver "github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
)

// inProcessOnly restricts a user to connections inside the process; the name is the server's.
const inProcessOnly = "IN_PROCESS"

// Like the server, which takes what has this prefix for a hash. What is not a
// whole hash would match no password at all.
var (
	bcryptPrefix = regexp.MustCompile(`^\$2[abxy]\$\d{2}\$`)
	bcryptHash   = regexp.MustCompile(`^\$2[abxy]\$\d{2}\$[./A-Za-z0-9]{53}$`)
)

type clientAuth struct {
	token string
	users []*natsserver.User // those of the system account, too
	nkeys []*natsserver.NkeyUser
}

// WithToken makes the listener ask every client for this secret: give the same to nats.Token, or write it before the
// host in the URL, "nats://token@host:port". A bcrypt hash of the secret will do. Without it, and without WithUser,
// WithNKey and WithClientCA, whoever reaches the listener, every user of this host for example, may take and break
// every lock. Not together with WithUser or WithNKey.
func WithToken(token string) Option {
	return func(c *config) error {
		if err := checkSecret("WithToken", token); err != nil {
			return err
		}
		return set(&c.auth.token, token, token != "", "WithToken: the token is empty; leave the option out for a server that is open to everybody")
	}
}

// WithUser lets in clients that give this name and password, see nats.UserInfo. It can be given several times, with
// different names, and together with WithNKey. Instead of the password it takes its bcrypt hash, as nats-server does:
// "$2a$11$...". All users may do everything; see WithConfigFile for permissions.
func WithUser(name, password string) Option {
	return func(c *config) error { return c.auth.add("WithUser", name, password, nil) }
}

// WithSystemUser lets in clients that give this name and password to the system account, and there to one question
// alone: the state and the settings of JetStream on all servers of the cluster, as 'lockfabric doctor' asks it. They
// can neither read nor change anything else, locks above all. It says nothing of who may take locks: WithUser,
// WithNKey or WithClientCA do. Not together with WithToken.
func WithSystemUser(name, password string) Option {
	return func(c *config) error {
		return c.auth.add("WithSystemUser", name, password, natsserver.NewAccount(natsserver.DEFAULT_SYSTEM_ACCOUNT))
	}
}

// onlyLooks is what a system user may do. All of the system account would be too
// much: its users may purge other accounts, and see what the replicas send each other.
func onlyLooks() *natsserver.Permissions {
	return &natsserver.Permissions{
		Publish:   &natsserver.SubjectPermission{Allow: []string{"$SYS.REQ.SERVER.PING.JSZ"}},
		Subscribe: &natsserver.SubjectPermission{Allow: []string{nats.InboxPrefix + ">"}},
	}
}

// add adds a user of the account, nil is the default one.
func (a *clientAuth) add(option, name, password string, account *natsserver.Account) error {
	switch {
	case !isName(name):
		return invalid("%s: name %q: give a name without spaces", option, name)
	case password == "":
		return invalid("%s(%q): the password is empty; give one, or its bcrypt hash", option, name)
	case slices.ContainsFunc(a.users, func(u *natsserver.User) bool { return u.Username == name }):
		return invalid("%s(%q): the name is given twice; give each name once", option, name)
	}
	if err := checkSecret(option, password); err != nil {
		return err
	}
	a.users = append(a.users, &natsserver.User{Username: name, Password: password, Account: account})
	return nil
}

// WithNKey lets in clients that prove to have the private key of one of these public user keys ("U..."), see
// nats.Nkey and nats.NkeyOptionFromSeed. It can be given several times. The server never learns a secret.
func WithNKey(publicKeys ...string) Option {
	return func(c *config) error {
		if len(publicKeys) == 0 {
			return invalid("WithNKey: no key; give the public key of a user, it begins with U")
		}
		for i, k := range publicKeys {
			switch {
			case strings.HasPrefix(k, "S"): // not into a message: it is a secret
				return invalid("WithNKey: key %d is a seed, which is a secret; give the public key that belongs to it, it begins with U", i+1)
			case !nkeys.IsValidPublicUserKey(k):
				return invalid("WithNKey: key %d is not the public key of a user; such a key begins with U", i+1)
			case slices.ContainsFunc(c.auth.nkeys, func(n *natsserver.NkeyUser) bool { return n.Nkey == k }):
				return invalid("WithNKey: %s is given twice; give each key once", k)
			}
			c.auth.nkeys = append(c.auth.nkeys, &natsserver.NkeyUser{Nkey: k})
		}
		return nil
	}
}

func checkSecret(option, secret string) error {
	if bcryptPrefix.MatchString(secret) && !bcryptHash.MatchString(secret) {
		return invalid("%s: the secret begins like a bcrypt hash but is none; give the whole hash", option)
	}
	return nil
}

// apply gives the server copies: it changes what it is given, and a reload compares.
func (a *clientAuth) apply(o *natsserver.Options) error {
	var system *natsserver.Account
	locks := len(a.nkeys) > 0
	for _, u := range a.users {
		if u.Account == nil {
			locks = true
		} else if system == nil {
			system = natsserver.NewAccount(u.Account.Name)
			o.Accounts, o.SystemAccount = append(o.Accounts, system), system.Name
		}
	}
	if system != nil && locks {
		// Else the server lets in who gives no name, as if only the system account
		// asked. Only a configuration can say so.
		if err := o.ProcessConfigString("authorization: {}"); err != nil {
			return fmt.Errorf("%w: %w", ErrStartFailed, err)
		}
	}
	o.Authorization = a.token
	for _, u := range a.users {
		copied := &natsserver.User{Username: u.Username, Password: u.Password}
		if u.Account != nil {
			copied.Account, copied.Permissions = system, onlyLooks()
		}
		o.Users = append(o.Users, copied)
	}
	for _, n := range a.nkeys {
		o.Nkeys = append(o.Nkeys, &natsserver.NkeyUser{Nkey: n.Nkey})
	}
	return nil
}

// identity is the user under which Server.Connect comes in where clients need
// credentials: a key made for this server, good inside the process only.
type identity struct {
	public string
	pair   nkeys.KeyPair
}

func newIdentity() (*identity, error) {
	pair, err := nkeys.CreateUser()
	if err != nil {
		return nil, err
	}
	public, err := pair.PublicKey()
	return &identity{public: public, pair: pair}, err
}

func (id *identity) option() nats.Option { return nats.Nkey(id.public, id.pair.Sign) }

// credentialsGiven reports whether a caller of Connect brings its own.
func credentialsGiven(opts []nats.Option) (bool, error) {
	o := nats.GetDefaultOptions()
	for _, f := range opts {
		if f == nil {
			continue
		}
		if err := f(&o); err != nil {
			return false, fmt.Errorf("embedded: connect: %w", err)
		}
	}
	return o.User != "" || o.Token != "" || o.Nkey != "" || o.UserJWT != nil || o.UserInfo != nil || o.TokenHandler != nil, nil
}

// needsCredentials reports whether the server asks clients who they are.
func needsCredentials(o *natsserver.Options) bool {
	return o.Username != "" || o.Authorization != "" || len(o.Users)+len(o.Nkeys) > 0 || operated(o)
}

// ownLogin reports whether Connect can have a user of its own. The server takes no
// users besides a name or token that is for websocket or MQTT alone.
func ownLogin(o *natsserver.Options) bool {
	return !hasAccounts(o) && o.Websocket.Username+o.Websocket.Token+o.MQTT.Username+o.MQTT.Token == ""
}

// operated reports whether accounts and users are JWTs.
func operated(o *natsserver.Options) bool { return len(o.TrustedOperators)+len(o.TrustedKeys) > 0 }

// hasAccounts reports whether clients are in accounts other than the default one, or somebody else says in which.
func hasAccounts(o *natsserver.Options) bool {
	if operated(o) || o.AuthCallout != nil {
		return true
	}
	return slices.ContainsFunc(o.Accounts, func(a *natsserver.Account) bool { return !isSystemAccount(o, a) })
}

func isSystemAccount(o *natsserver.Options, a *natsserver.Account) bool {
	return a != nil && (a.Name == o.SystemAccount || a.Name == natsserver.DEFAULT_SYSTEM_ACCOUNT)
}

// routeAuth is what the servers of a cluster ask of each other.
type routeAuth struct {
	user, password string
	tls            tlsFiles
}

// WithClusterAuth makes the servers of a cluster ask each other for this name and password; all need the same. A
// route that names its own user, "nats-route://user:password@host:port", keeps it; and where all routes name the same
// one, this option can be left out. The password is needed as it is, not as a hash: this server gives it to the
// others. Needs WithCluster.
func WithClusterAuth(user, password string) Option {
	return func(c *config) error {
		switch {
		case !isName(user):
			return invalid("WithClusterAuth: name %q: give a name without spaces", user)
		case password == "":
			return invalid("WithClusterAuth: the password is empty")
		case bcryptPrefix.MatchString(password):
			return invalid("WithClusterAuth: the password is a bcrypt hash; give the password itself, the other servers ask for it")
		}
		c.routeAuth.user, c.routeAuth.password = user, password
		return nil
	}
}

// WithClusterTLS makes the servers of a cluster speak TLS with each other, and ask each other for a certificate that
// one of the authorities in caFile has signed. A certificate must be good for both ends of a connection and name the
// host by which the routes call this server. All files are PEM. Needs WithCluster; all servers need it or none.
func WithClusterTLS(certFile, keyFile, caFile string) Option {
	return func(c *config) error {
		all := certFile != "" && keyFile != "" && caFile != ""
		return set(&c.routeAuth.tls, tlsFiles{certFile, keyFile, caFile}, all, "WithClusterTLS: give three files, the certificate, its key, and the authorities")
	}
}

// apply completes the cluster's options, in which the routes are.
func (a routeAuth) apply(o *natsserver.Options) error {
	if a.tls.cert != "" {
		t, err := a.tls.load("WithClusterTLS")
		if err != nil {
			return err
		}
		o.Cluster.TLSConfig, o.Cluster.TLSTimeout = t, tlsTimeout
	}
	login, err := a.login(o.Routes)
	if err != nil || login == nil {
		return err
	}
	o.Cluster.Username = login.Username()
	o.Cluster.Password, _ = login.Password()
	for _, r := range o.Routes {
		if r.User == nil {
			r.User = login
		}
	}
	return nil
}

// login is what this server asks for: as told, or else what the routes say.
func (a routeAuth) login(routes []*url.URL) (*url.Userinfo, error) {
	if a.user != "" {
		return url.UserPassword(a.user, a.password), nil
	}
	var found *url.Userinfo
	for _, r := range routes {
		if r.User == nil {
			continue
		}
		if _, ok := r.User.Password(); !ok || r.User.Username() == "" {
			return nil, invalid("WithCluster: the route to %s names a user without a password; give both, or use WithClusterAuth", r.Host)
		}
		if found != nil && found.String() != r.User.String() {
			return nil, invalid("WithCluster: the routes name different users; say with WithClusterAuth which one this server asks for")
		}
		found = r.User
	}
	return found, nil
}

// tlsTimeout bounds a handshake, in seconds. The server's own default of two is short for a host that is busy.
const tlsTimeout = 5

// tlsFiles are the files of one listener. They are read at the start and again by Reload.
type tlsFiles struct {
	cert, key, ca string
}

// WithTLS makes the client listener speak TLS, and only that, with this certificate (its chain may follow in the
// file) and its key, both in PEM. ClientURL begins with "tls://" then. Connections inside the process need none.
// Needs WithListen.
func WithTLS(certFile, keyFile string) Option {
	return func(c *config) error {
		if certFile == "" || keyFile == "" {
			return invalid("WithTLS: give two files, the certificate and its key")
		}
		c.tls.cert, c.tls.key = certFile, keyFile
		return nil
	}
}

// WithClientCA makes the client listener ask for a certificate that one of the authorities in caFile (PEM) has
// signed; without one nobody gets in. That is authentication of its own, and users, nkeys or a token can be asked for
// besides. Needs WithTLS.
func WithClientCA(caFile string) Option {
	return func(c *config) error {
		return set(&c.tls.ca, caFile, caFile != "", "WithClientCA: the file is empty; name one with the certificates of the authorities")
	}
}

// load reads the files. With authorities the other side needs a certificate of theirs, whoever dials.
func (f tlsFiles) load(option string) (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(f.cert, f.key)
	if err != nil {
		return nil, invalid("%s: certificate %s and key %s: %w", option, f.cert, f.key, err)
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}}
	if f.ca == "" {
		return cfg, nil
	}
	pem, err := os.ReadFile(f.ca)
	if err != nil {
		return nil, invalid("%s: authorities: %w", option, err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, invalid("%s: authorities: %s has no certificate in PEM", option, f.ca)
	}
	cfg.ClientCAs, cfg.RootCAs = pool, pool
	cfg.ClientAuth = tls.RequireAndVerifyClientCert
	return cfg, nil
}
