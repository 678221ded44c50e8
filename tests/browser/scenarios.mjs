// All scenarios, in the order in which they run.
import * as logins from './scenarios/logins.mjs';
import * as failures from './scenarios/failures.mjs';
import * as tabs from './scenarios/tabs.mjs';
import * as requests from './scenarios/requests.mjs';
import * as sites from './scenarios/sites.mjs';
import * as sessions from './scenarios/sessions.mjs';
import * as tickets from './scenarios/tickets.mjs';
import * as scan from './scenarios/scan.mjs';
import * as demo from './scenarios/demo.mjs';
import * as log from './scenarios/log.mjs';

export const SCENARIOS = {
    ...logins,
    ...failures,
    ...tabs,
    ...requests,
    ...sites,
    ...sessions,
    ...tickets,
    ...scan,
    ...demo,
    // Last: it reads what the others left.
    ...log,
};
