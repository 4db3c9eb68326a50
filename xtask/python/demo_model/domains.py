"""Vocabulary of the twelve domains that the demo model sorts sentences into.

Each domain has four lists, from which `data.py` builds sentences:

* ``topics``    noun phrases, put into frames that any domain shares ("We talked about {topic}");
* ``subjects``  noun phrases that can act;
* ``actions``   past-tense predicates that follow a subject of the same domain;
* ``doings``    infinitives without "to" ("I want to {doing}").

The lists are long because a model trained from nothing knows a word only if it met it here.
Entries are separated by ``;`` so that a domain stays readable as a block of prose.
"""


def _split(block):
    """A ``;``-separated block as a list of phrases with single spaces."""
    return [" ".join(entry.split()) for entry in block.split(";") if entry.strip()]


def _domain(topics, subjects, actions, doings):
    blocks = {"topics": topics, "subjects": subjects, "actions": actions, "doings": doings}
    return {name: _split(block) for name, block in blocks.items()}


DOMAINS = {
    "weather": _domain(
        topics="""rain; snow; the wind; the storm; thunder; lightning; fog; hail; the forecast; sunshine; a
            heatwave; frost; ice on the road; clouds; drizzle; humidity; the temperature; a cold front; a
            hurricane; a tornado; the drought; floods; a rainbow; the breeze; the monsoon; sleet; dew;
            mist; a blizzard; the heat; wet days; sunny spells; showers; black clouds; a clear sky; winter
            frost; gusts of wind; degrees below zero; the barometer; an umbrella; a mild winter; the warm
            front; grey skies; dry weather; a chilly morning""",
        subjects="""the rain; the snow; the storm; the wind; the fog; the sky; a thunderstorm; the sun;
            heavy rain; the heatwave; a cold front; the hurricane; freezing rain; the frost; dark clouds;
            the breeze; light snow; the forecast; the temperature; a gale; the drizzle; the blizzard; the
            weather; the sunshine; hail""",
        actions="""fell all night; cleared by noon; moved in from the sea; covered the hills; lasted for
            hours; dropped below zero; blew from the north; turned cold and wet; is expected over the
            coast; faded at sunset; soaked everyone outside; came without warning; stopped before dawn; got
            worse in the afternoon; was stronger than usual; rose to thirty degrees; hung over the valley;
            will reach us tomorrow; kept us indoors; melted the ice; made the roads icy; brought thunder
            and lightning; was warm and dry; became cloudy and humid; will be mild""",
        doings="""take an umbrella because it may rain; check the forecast; wait until the storm is over;
            wear a coat in the cold wind; stay dry in the rain; watch the clouds; enjoy the sunshine; clear
            the snow; scrape the ice off the car; look at the rainbow; shelter from the hail; measure the
            temperature; close the windows before the thunderstorm; cool down in this heat; walk in the
            fog; expect frost tonight; prepare for the hurricane; feel the warm breeze; see if it will be
            sunny; listen to the thunder""",
    ),
    "sport": _domain(
        topics="""football; the match; the team; tennis; the goalkeeper; the league; a penalty; basketball;
            the coach; the marathon; swimming; the championship; the final score; rugby; cricket; the
            Olympic games; a gold medal; boxing; the referee; cycling; golf; the stadium; the trophy;
            hockey; the sprint; a home run; volleyball; skiing; athletics; the striker; the midfield; a hat
            trick; wrestling; the tournament; the race; gymnastics; the relay; training; the league table;
            the winning goal; a world record; surfing; the club""",
        subjects="""the team; the striker; the goalkeeper; our coach; the champion; the runner; the
            captain; the referee; a young player; the tennis star; the boxer; the cyclist; the swimmer; the
            home side; the defender; the athlete; the visitors; the club; the winger; the golfer; the
            national team; the sprinter; the skier; the quarterback; the batsman""",
        actions="""scored in the last minute; won the match; lost the final; missed a penalty; broke the
            world record; finished the race first; was sent off; trained hard for the season; saved three
            shots; lifted the trophy; won a gold medal; played extra time; beat the champions; scored two
            goals; ran the marathon; dropped to the bottom of the league; signed for another club; blew the
            whistle; reached the semi-final; served an ace; injured a knee during the game; crossed the
            finish line; drew three all; qualified for the tournament;
            celebrated the victory with the fans""",
        doings="""play football; watch the match; run a marathon; win the championship; score a goal; train
            with the team; swim fifty lengths; kick the ball; join a tennis club; beat our rivals; lift the
            trophy; cheer for the team; buy tickets for the stadium; throw the javelin; cycle up the
            mountain stage; practise free throws; warm up before the game; pick the players for the squad;
            take the penalty; play a round of golf; compete in the Olympic games;
            hit the ball over the net""",
    ),
    "food": _domain(
        topics="""pasta; the soup; bread; cheese; the recipe; a cake; chocolate; dinner; breakfast; lunch;
            the salad; pizza; the restaurant menu; rice; roast chicken; fresh fish; vegetables; garlic;
            tomato sauce; olive oil; butter; spices; dessert; ice cream; a sandwich; apple pie; pancakes;
            noodles; the kitchen; the chef; curry; beans; potatoes; onions; eggs and bacon; strawberry jam;
            honey; the oven; a burger; mushrooms; biscuits; coffee; green tea; a steak; sugar; salt and
            pepper; dough; yoghurt; a delicious meal; grilled vegetables""",
        subjects="""the chef; the cook; the baker; the soup; the pizza; the chocolate cake; my grandmother;
            the waiter; the roast chicken; the bread; this recipe; the salad; the pasta; the restaurant;
            the curry; the sauce; the dessert; the stew; the cheese; breakfast; the dough; the steak; the
            noodles; the pie; the fish""",
        actions="""tasted delicious; needed more salt; was served with rice; came fresh from the oven;
            smelled of garlic; was too spicy; baked for an hour; melted in the mouth; had too much sugar;
            was cooked in butter; burned in the pan; simmered on the stove; was topped with cheese; went
            well with the tomato sauce; was crispy and golden; tasted of lemon and honey; was made with
            fresh vegetables; had a rich flavour; was grilled with onions; came with fried potatoes; used
            two eggs and flour; was eaten at once; was sweet and creamy; was boiled for ten minutes; was on
            the menu""",
        doings="""bake a cake; cook dinner; try the new recipe; order a pizza; chop the onions; boil the
            pasta; eat breakfast; fry the eggs; grill the fish; peel the potatoes; taste the soup; knead
            the dough; make a sandwich; buy fresh vegetables; add a pinch of salt; whip the cream; roast a
            chicken; drink a cup of coffee; melt the chocolate; set the table for lunch; reserve a table at
            the restaurant; stir the sauce; slice the bread and cheese; serve the dessert""",
    ),
    "travel": _domain(
        topics="""the flight; the airport; our hotel; a passport; the beach holiday; a suitcase; the train
            journey; the visa; the museum tour; a road trip; the cruise; tourists; the guidebook; a map of
            the city; the ferry; a backpack; the boarding pass; luggage; a hostel; sightseeing; the island;
            the border crossing; the itinerary; a souvenir; the travel agency; the departure gate; a window
            seat; the campsite; a guided tour; the resort; the delayed train; the sleeper train; the old
            town; a postcard; the rental car; customs; the return ticket; a weekend abroad; the tourist
            office; the holiday brochure; the taxi to the airport""",
        subjects="""the tourists; our flight; the train; the ferry; the hotel; our guide; the passengers;
            the travellers; the backpackers; the bus to the airport; the cruise ship; our suitcase; the
            plane; the tour group; the pilot; the taxi; the hostel; the campers; the travel agent; the
            island; the honeymoon couple; the receptionist; the visitors from abroad; the luggage; the
            airline""",
        actions="""arrived at the airport late; left from platform nine; booked a room with a sea view;
            crossed the border; was cancelled; landed in Lisbon; visited the old castle; stayed for two
            nights; explored the narrow streets; got lost on the way to the station; was full of
            holidaymakers; boarded the plane; missed the connection; spent a week on the coast; took photos
            of the cathedral; packed for the journey; checked in at the desk; sailed to the islands; showed
            the passport at the gate; drove along the coast road; flew to Tokyo; was delayed by three
            hours; hiked through the national park; checked out of the hotel; was lost at the airport""",
        doings="""book a flight to Rome; pack my suitcase; visit Japan; stay in a hotel; renew my passport;
            travel by train; see the pyramids; take the ferry to the island; rent a car at the airport;
            explore the old town; buy a return ticket; apply for a visa; go on holiday; catch the night
            bus; fly to New York; sleep in a tent; join a guided tour; lie on the beach abroad; check in at
            the hotel; travel around the world; plan a trip to Greece; cross the country by car; ask the
            tourist office for a map; board the plane""",
    ),
    "music": _domain(
        topics="""the guitar; a song; the band; the concert; the violin; jazz; the orchestra; the piano;
            the choir; an album; the drummer; the melody; opera; hip hop; the chorus; the bass line; a
            symphony; the singer; the lyrics; rock music; the flute; the playlist; the conductor; a cello;
            the rhythm; classical music; the trumpet; the microphone on stage; the tune; folk songs; vinyl
            records; the sonata; the harmony; the festival stage; the saxophone; a ballad; the chords; the
            composer; the encore; a string quartet; the radio hit; karaoke""",
        subjects="""the band; the singer; the orchestra; the pianist; the choir; the drummer; the
            guitarist; the violinist; the composer; the conductor; the song; the concert; the new album;
            the rapper; the melody; the cellist; the opera; the DJ; the chorus; the quartet; the trumpet
            player; the soprano; the symphony; the bass player; the folk group""",
        actions="""played an encore; sang out of tune; released a new album; wrote a beautiful melody; went
            on stage; tuned the guitar; topped the charts; performed a symphony; recorded three songs;
            sounded like old jazz; had a catchy chorus; conducted the orchestra; played the piano softly;
            practised the chords; sang in perfect harmony; filled the concert hall; changed the rhythm;
            ended on a high note; began with a drum solo; was played on the radio; hummed the tune; was
            written in a minor key; toured with the band; picked up the violin; forgot the lyrics""",
        doings="""play the guitar; learn the piano; sing in a choir; listen to jazz; write a song; go to
            the concert; tune the violin; record an album; hear the orchestra; practise the scales; dance
            to the beat; buy the new record; join a band; compose a symphony; memorise the lyrics; play the
            drums; hum a tune; turn up the volume of this song; perform on stage; read sheet music; make a
            playlist; blow the trumpet""",
    ),
    "finance": _domain(
        topics="""the bank; a loan; interest rates; the stock market; shares; a mortgage; inflation; my
            savings account; taxes; the budget; a credit card; bonds; the exchange rate; profits;
            dividends; a pension fund; the investment; debt; the euro; the dollar; insurance premiums; the
            invoice; the balance sheet; venture capital; bankruptcy; wages; the price of gold; the
            accountant; quarterly earnings; the trader; the stock exchange; cash; a bank transfer; the
            deposit; the currency; revenue; monthly payments; the shareholders; a tax refund;
            the overdraft""",
        subjects="""the bank; the investors; the stock market; the company's shares; the central bank; the
            accountant; the broker; inflation; the interest rate; the fund; the shareholders; the trader;
            the euro; my savings; the lender; the price of oil; the insurance company; the bonds; the
            auditor; quarterly profits; the mortgage; the dollar; the economy; the pension fund; the
            treasurer""",
        actions="""rose by two percent; fell sharply on Monday; raised interest rates; paid a dividend;
            lost millions; approved the loan; lost value against the dollar; reported record profits;
            bought more shares; cut the budget; invested in bonds; went bankrupt; sold the stock; increased
            the monthly payments; transferred the money; filed the tax return; closed higher on the stock
            exchange; refused the credit; doubled in price; checked the balance sheet; charged a fee on the
            account; grew more slowly this quarter; paid off the debt; reduced the costs; signed the
            mortgage""",
        doings="""open a savings account; pay my taxes; invest in shares; apply for a mortgage; transfer
            the money to the bank; borrow five thousand euros; pay off the loan; save for a pension; check
            the exchange rate; sell the bonds; reduce our debt; pay the invoice; withdraw cash; compare
            interest rates; buy stock in the company; balance the budget; ask the accountant about tax;
            cancel the credit card; claim a tax refund; calculate the profit; earn a higher salary; deposit
            the cheque""",
    ),
    "health": _domain(
        topics="""the doctor; the hospital; a headache; the flu; a vaccine; medicine; the nurse; blood
            pressure; an operation; the dentist; a fever; vitamins; the patient; a sore throat; an allergy;
            physiotherapy; a broken arm; the surgeon; the pharmacy; antibiotics; a cough; back pain;
            diabetes; mental health; the clinic; a heart attack; symptoms; a healthy diet; the ambulance;
            painkillers; the prescription; asthma; the infection; sleep problems; stress; a check-up; the
            therapist; an injury; cholesterol; the waiting room of the surgery; recovery; the virus; a
            toothache""",
        subjects="""the doctor; the nurse; the patient; the surgeon; the dentist; the medicine; the fever;
            the vaccine; the hospital; her headache; the ambulance; the infection; the therapist; the
            pharmacist; his blood pressure; the cough; the clinic; the midwife; the treatment; the injury;
            the disease; the operation; the allergy; the symptoms; the pills""",
        actions="""treated the infection; prescribed antibiotics; recovered after the operation; was too
            high; got worse overnight; took the patient's temperature; caused a rash; was in pain; gave her
            an injection; examined his throat; relieved the pain; bandaged the wound; was rushed to
            hospital; checked the heartbeat; slept badly with a fever; prevented the disease; removed the
            tooth; suffered from an allergy; lasted a week and then healed; spread through the ward;
            advised more exercise and rest; had side effects; stayed in bed with the flu; was diagnosed
            with diabetes; cured the illness""",
        doings="""see a doctor; take the medicine; get a vaccine; lower my blood pressure; go to the
            dentist; cure the cough; rest until the fever is gone; call an ambulance; eat a healthier diet;
            lose weight; make an appointment at the clinic; treat the wound; stop smoking; sleep eight
            hours to recover; test my blood; see a therapist about stress; bandage the knee; take two pills
            a day; visit her in hospital; wash my hands to avoid infection; have an operation; heal a
            broken leg""",
    ),
    "technology": _domain(
        topics="""the computer; software; a new phone; the server; the internet; a programming language;
            the laptop; robots; the app; a database; the keyboard; a password; the network; the compiler;
            an update; the graphics card; the cloud; the browser; a bug in the code; the processor; virtual
            reality; the website; encryption; the router; machine learning; a smartphone; the screen; the
            battery of my phone; open source code; a memory chip; the developer; the hard disk;
            cybersecurity; a hacker; the operating system; data centres; a drone; the touch screen;
            wireless headphones; an algorithm""",
        subjects="""the programmer; the server; the new phone; the software; the app; the laptop; the
            developers; the robot; the website; the engineer; the database; the compiler; the network; the
            hacker; the update; the chip; the browser; the operating system; the startup; the computer; the
            router; the processor; the program; the algorithm; the printer""",
        actions="""crashed after the update; was rebooted; fixed the bug; ran out of memory; was hacked;
            stores data in the cloud; compiled without errors; needs a stronger password; loads the page
            faster; connects to the internet; wrote a thousand lines of code; encrypts every message; runs
            on a small chip; lost the wireless signal; launched a new version; was installed on every
            laptop; has a faster processor; froze the screen; released the source code; deleted the files
            by mistake; recognises faces in photos; was offline for an hour; deployed the program to
            production; downloads updates at night; charges the battery in minutes""",
        doings="""install the update; write a program; fix the bug in the code; restart the computer;
            change my password; download the app; build a website; charge my phone; back up the files;
            connect to the network; train a robot; learn to code in Python; set up the router; upgrade the
            processor; test the software; delete my browser history; encrypt the hard disk; debug the
            server; design a chip; scan the laptop for viruses; send the data to the cloud""",
    ),
    "science": _domain(
        topics="""atoms; the telescope; a chemical reaction; gravity; the experiment; DNA; black holes; the
            laboratory; molecules; the theory of relativity; evolution; the microscope; electrons; the
            galaxy; cells; quantum physics; photosynthesis; a new planet; bacteria; the speed of light;
            fossils; the hypothesis; energy and matter; a comet; the periodic table; genetics; the particle
            accelerator; magnetism; dark matter; biology; chemistry; an astronomer; the solar system;
            protons; the laws of physics; radioactive decay; a new species; the ecosystem; oxygen and
            hydrogen; the orbit of Mars""",
        subjects="""the scientists; the physicist; the chemist; the biologist; the astronomers; the
            telescope; the experiment; the researchers; a black hole; the molecule; the electron; the
            bacteria; the cell; the theory; the comet; the fossil; the laboratory; the particle; the
            satellite probe; the microscope; the geologist; this enzyme; the galaxy; the hypothesis; the
            new element""",
        actions="""discovered a new species; orbits a distant star; split the atom; confirmed the theory;
            reacted with oxygen; measured the speed of light; was observed under the microscope; contains
            carbon and hydrogen; proved the hypothesis; carries an electric charge; studied the genes of
            mice; mixed the chemicals in a tube; bends light with its gravity; evolved over millions of
            years; detected gravitational waves; explained how cells divide; emits radiation; repeated the
            experiment; published the results in a journal; found water on Mars; has two protons; collided
            with another particle; looked at distant galaxies; absorbs energy from light; dissolved in the
            acid""",
        doings="""study the stars; measure gravity; look through the microscope; test the hypothesis;
            repeat the experiment; split an atom; observe the galaxy; mix two chemicals; explain evolution;
            map the human genome; launch a probe to Jupiter; grow bacteria in a dish; understand quantum
            physics; classify the new species; weigh the molecules; find dark matter; examine the fossil;
            prove the theory; detect radiation; cool the gas to absolute zero; count the electrons""",
    ),
    "history": _domain(
        topics="""the Roman empire; the French revolution; ancient Egypt; the medieval castle; the first
            world war; the king's army; the middle ages; Napoleon; the pharaohs; the Vikings; the
            Renaissance; the old manuscripts; the cold war; Julius Caesar; the industrial revolution; the
            treaty of 1648; knights; the ancient Greeks; the crusades; the dynasty; the archives; the
            colonial era; the battle of Waterloo; the Berlin wall; the emperor; the plague of 1348; the
            Aztecs; an ancient temple; the monarchy; the eighteenth century; the slave trade; gladiators;
            the Ottoman empire; the siege; the ruins; the Bronze Age; the second world war; the Victorians;
            queen Victoria; the samurai; the explorers of the past""",
        subjects="""the Romans; the emperor; Napoleon; the Vikings; the king; the pharaoh; the ancient
            Greeks; the knights; the queen; the historian; the crusaders; the empire; Julius Caesar; the
            dynasty; the medieval monks; the archaeologists; the tsar; the Spanish conquerors; the old
            fortress; the peasants; Cleopatra; the samurai; the Aztecs; the legions; the duke""",
        actions="""conquered the city in 1453; built the great wall; ruled for forty years; was defeated at
            the battle; fell in 476; crossed the Alps with an army; wrote the first laws on clay; signed
            the treaty in 1815; was buried in a tomb; fought a long war against Carthage; founded the city
            in ancient times; was crowned in 1066; burned the old library; lost the throne in the
            revolution; sailed west in the fifteenth century; was besieged for months; invaded England;
            ended in the nineteenth century; dug up a Bronze Age sword; left ruins all over the province;
            declared war in 1914; rebelled against the tsar; lived in the middle ages; traded silk with the
            ancient world; was beheaded""",
        doings="""learn about the Roman empire; visit the ruins of Pompeii; read about the French
            revolution; study the middle ages; date the ancient coins; understand the causes of the first
            world war; see the tomb of the pharaoh; restore the medieval castle; read the diaries of
            Napoleon; remember the fall of the Berlin wall; explain the decline of the empire; dig for
            Viking swords; learn who ruled in 1500; translate the old inscriptions; describe life in
            ancient Greece; write about the crusades; trace the royal dynasty; look in the archives for the
            old treaty; tell the story of the knights""",
    ),
    "politics": _domain(
        topics="""the election; parliament; the president; the prime minister; a new law; the vote; the
            opposition; democracy; the senate; the campaign; the minister; a referendum; the government;
            foreign policy; the coalition; the mayor; the constitution; human rights; the debate in
            congress; the embassy; the party leader; the ballot; the cabinet; protests; the treaty talks;
            immigration policy; the candidate; the polls; diplomats; the United Nations; the governor; the
            European Union; a veto; corruption; the right to vote; the summit; lobbying; sanctions; the
            reform bill; the ruling party; the chancellor""",
        subjects="""the president; the prime minister; the parliament; the senator; the opposition; the
            voters; the government; the minister; the mayor; the candidate; the coalition; the party; the
            protesters; the diplomats; the congress; the governor; the ambassador; the chancellor; the
            cabinet; the activists; the council; the senate; the deputies; the electoral commission; the
            lawmakers""",
        actions="""passed a new law; won the election; resigned after the scandal; voted against the bill;
            called for a referendum; gave a speech in parliament; lost the majority; signed the agreement
            with the European Union; demanded a recount of the votes; vetoed the reform; promised to change
            the constitution; debated the immigration policy; formed a government; imposed sanctions; leads
            in the polls; marched for civil rights; met the foreign minister; was elected for four years;
            blocked the proposal; announced the campaign; criticised the president; postponed the vote;
            negotiated at the summit; appointed a new minister; supported the opposition""",
        doings="""vote in the election; run for president; change the law; join a political party; protest
            against the government; write to the mayor; count the ballots; debate the bill in parliament;
            form a coalition; campaign for the candidate; reform the constitution; meet the ambassador;
            elect a new leader; demand a referendum; defend democracy; sign the petition against the
            minister; reject the policy; address the United Nations; win a seat in the senate; hold the
            government to account""",
    ),
    "education": _domain(
        topics="""the school; the teacher; homework; the exam; university; the students; a scholarship; the
            classroom; the curriculum; maths lessons; the pupils; a degree; the lecture; the headteacher;
            kindergarten; the timetable; the school library; grades; the diploma; a textbook; the semester;
            a spelling test; the professor; the school trip; tuition fees; graduation; the essay; the
            dictionary; an online course; reading and writing; the blackboard; a private tutor; the
            dissertation; the campus; adult learning; a quiz for the class; the final exams; the school
            year; the enrolment; a student loan""",
        subjects="""the teacher; the students; the professor; the pupils; the school; the university; the
            headteacher; the tutor; the class; the exam; the lecturer; the kindergarten; the first-year
            student; the course; the homework; the college; the graduate; the school board; the lesson; the
            essay; the textbook; the trainee teacher; the schoolchildren; the examiner; the faculty""",
        actions="""handed out the homework; failed the exam; graduated last summer; taught the class to
            read; passed the final test; marked the essays; started the lesson late; gave a lecture;
            studied for the exam; learned the alphabet; got a scholarship; offers courses in the evening;
            wrote on the blackboard; enrolled at the university; asked the pupils a question; received a
            diploma; set a new curriculum; was graded by the teacher; missed a week of school; explained
            fractions to the pupils; opened a new classroom; finished the degree; prepared the students for
            the exam; handed in the essay; revised chapter three""",
        doings="""do my homework; study for the exam; go to university; learn to read; pass the test; teach
            a class; finish my degree; hand in the essay; apply for a scholarship; attend the lecture; help
            the pupils with spelling; borrow a textbook; enrol in a course; get better grades; write a
            dissertation; train as a teacher; revise for the final exams; pay the tuition fees; raise your
            hand in class; talk to the headteacher; take notes in the lesson; graduate next year""",
    ),
}

LABELS = list(DOMAINS)

FRAMES = _split(
    """We talked about {t} all evening.; I read an article about {t}.; Yesterday I thought about {t}.; {t}
    and {u}.; Everyone was talking about {t}.; She wrote to me about {t} and {u}.; He knows a lot
    about {t}.; There was news about {t}.; Have you heard about {t}?; My brother asked me about
    {t}.; It was all about {t}.; The report mentions {t} and {u}.; Nobody expected {t}.; I am
    worried about {t}.; They argued over {t}.; This is a story about {t} and {u}.; Tell me more
    about {t}.; First {t}, then {u}.; We were surprised by {t}.; {t} was the main subject.; I have
    never understood {t}.; It has something to do with {t}.; Do you remember {t}?; What a day: {t}
    and then {u}!"""
)

STARTERS = _split(
    """I want to {d}.; We had to {d}.; She is going to {d}.; He forgot to {d}.; You should {d}.; Let's
    {d}.; They would like to {d}.; My sister decided to {d}.; It is time to {d}.; I need to {d}
    today.; Could you {d}?; We hope to {d} next week.; How do I {d}?; My parents told me to {d}.; It
    took us an hour to {d}.; I was too tired to {d}.; Nobody wanted to {d}.; Remember to {d}.;
    Before we left, we tried to {d}.; Is it possible to {d}?"""
)

TAILS = _split(
    """this morning; last week; again; in the end; on Sunday; after all; as we feared; at last; once more;
    yesterday; today; to our surprise; for the first time; according to my neighbour; while we
    watched; just in time"""
)
