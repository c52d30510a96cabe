/* The pages of offdiag report and offdiag study. */
'use strict';
